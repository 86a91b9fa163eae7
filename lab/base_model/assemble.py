"""Assembles a checkpoint that ComfyUI loads like any other from the shipped weights and a seeded text encoder.

The VAE and the denoiser are trained and shipped (vae.safetensors and denoiser.safetensors, fp16). The text encoder is
a CLIP-L whose 123 M weights are drawn from a seeded generator and not shipped. It tells captions apart, which is enough
for this small world. A checksum proves that every machine assembles the same file.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ...training.disk import write_whole
from .progress import save_whole

HERE = Path(__file__).resolve().parent
VAE, DENOISER = HERE / "vae.safetensors", HERE / "denoiser.safetensors"
PREFIXES = {VAE: "first_stage_model.", DENOISER: "model.diffusion_model."}  # their places in the checkpoint
CARD = HERE / "card.json"  # checksums, steps, measured quality

DEPTH, PATCHES = 4, 16  # 4 blocks, 256 wide; positions for latents up to 32 × 32, pictures up to 256 px
LATENT_SCALE, LATENT_SHIFT = 1.5305, 0.0609  # the host's SD3 latent format
TEXT_SEED = 20_240_601
TEXT_PREFIX = "text_encoders.clip_l."
_CHUNK = 1 << 16  # values drawn at once, few enough to stay in the processor's cache

# CLIP-L as OpenAI published it: the host fixes these sizes.
TEXT_WIDTH, TEXT_LAYERS, TEXT_TOKENS, TEXT_VOCABULARY, TEXT_HIDDEN = 768, 12, 77, 49408, 3072


class BaseModelError(RuntimeError):
    """The shipped weights are missing or damaged; the message says what to do."""


def denoiser_config() -> dict[str, Any]:
    """The MMDiT's configuration, as the host's detection derives it from the weights."""
    width = 64 * DEPTH
    return {
        "in_channels": 16, "patch_size": 2, "out_channels": 16, "depth": DEPTH, "input_size": None,
        "adm_in_channels": 2048, "num_patches": PATCHES**2, "pos_embed_max_size": PATCHES,
        "context_embedder_config": {"target": "torch.nn.Linear",
                                    "params": {"in_features": 4096, "out_features": width}},
        "pos_embed_scaling_factor": None, "qk_norm": "rms", "x_block_self_attn_layers": [],
    }  # fmt: skip


def text_encoder_weights() -> dict[str, Tensor]:
    """Draw CLIP-L: token embedding of deviation 1, positions 0.3, layers 0.02, fp16.

    Tensors are drawn in the order written here, from one generator. A value is the sum of the four 16-bit parts of one
    raw 64-bit number of PCG64. That is nearly normal and, unlike a normal generator, uses integers only, so every
    processor and library version draws the same bits.
    """
    source = np.random.PCG64(TEXT_SEED)
    found: dict[str, Tensor] = {}

    def draw(name: str, *shape: int, scale: float) -> None:
        values, factor = np.empty(math.prod(shape), np.float16), np.float32(scale / (65536 / math.sqrt(3)))
        for at in range(0, len(values), _CHUNK):
            parts = source.random_raw(min(_CHUNK, len(values) - at)).view(np.uint16).reshape(-1, 4).astype(np.int32)
            sums = parts[:, 0] + parts[:, 1] + parts[:, 2] + parts[:, 3] - 2 * 65535
            values[at : at + len(sums)] = sums.astype(np.float32) * factor
        found[name] = torch.from_numpy(values).reshape(shape)

    def norm(name: str) -> None:
        found[f"{name}.weight"] = torch.ones(TEXT_WIDTH).half()
        found[f"{name}.bias"] = torch.zeros(TEXT_WIDTH).half()

    draw("text_model.embeddings.token_embedding.weight", TEXT_VOCABULARY, TEXT_WIDTH, scale=1.0)
    draw("text_model.embeddings.position_embedding.weight", TEXT_TOKENS, TEXT_WIDTH, scale=0.3)
    for number in range(TEXT_LAYERS):
        layer = f"text_model.encoder.layers.{number}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            draw(f"{layer}.self_attn.{part}.weight", TEXT_WIDTH, TEXT_WIDTH, scale=0.02)
            draw(f"{layer}.self_attn.{part}.bias", TEXT_WIDTH, scale=0.02)
        draw(f"{layer}.mlp.fc1.weight", TEXT_HIDDEN, TEXT_WIDTH, scale=0.02)
        draw(f"{layer}.mlp.fc1.bias", TEXT_HIDDEN, scale=0.02)
        draw(f"{layer}.mlp.fc2.weight", TEXT_WIDTH, TEXT_HIDDEN, scale=0.02)
        draw(f"{layer}.mlp.fc2.bias", TEXT_WIDTH, scale=0.02)
        norm(f"{layer}.layer_norm1")
        norm(f"{layer}.layer_norm2")
    norm("text_model.final_layer_norm")
    draw("text_projection.weight", TEXT_WIDTH, TEXT_WIDTH, scale=0.02)
    return found


def checksum(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, shapes, dtypes and bytes of all tensors."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def card() -> dict[str, Any]:
    """Read the model card's numbers: checksums, steps, measured quality; empty before the first training.

    Raises:
        BaseModelError: It is damaged.
    """
    try:
        facts = json.loads(CARD.read_text(encoding="utf-8")) if CARD.is_file() else {}
        if not isinstance(facts, dict):
            raise ValueError("it holds no names and values")
    except ValueError as error:
        raise BaseModelError(f"The base model is damaged: {CARD} cannot be read ({error}). {_again(CARD)}") from error
    return facts


def write_card(facts: dict[str, Any]) -> None:
    """Write the model card's numbers."""
    write_whole(CARD, json.dumps(facts, indent=1) + "\n")


def shipped(file: Path) -> dict[str, Tensor]:
    """Read one of the two shipped files and verify its checksum.

    Raises:
        BaseModelError: It is missing, truncated or changed.
    """
    for needed in (file, CARD):
        if not needed.is_file():
            raise BaseModelError(f"The base model is incomplete: {needed} is missing. {_again(needed)}")
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise BaseModelError(f"The base model is damaged: {file} cannot be read ({error}). {_again(file)}") from error
    if checksum(tensors) != card().get("sha256", {}).get(file.name):
        raise BaseModelError(
            f"The base model is damaged: the checksum of {file} is not the one in {CARD.name}. {_again(file, CARD)}"
        )
    return tensors


def _again(*files: Path) -> str:
    names = " ".join(f"lab/base_model/{file.name}" for file in files)
    return f"Install the pack again, or restore the file from its repository (git checkout {names})."


def ship(file: Path, tensors: dict[str, Tensor], **facts: Any) -> None:
    """Write one of the two shipped files in fp16, and its checksum and facts into the card.

    Nothing is written if the same file is there already. The card's quality is removed if the weights changed.
    """
    halves = {name: tensor.detach().half().contiguous() for name, tensor in tensors.items()}
    known, digest = card(), checksum(halves)
    sums = known.setdefault("sha256", {})
    if sums.get(file.name) != digest:
        known.pop("quality", None)
    elif file.is_file() and "checkpoint" in sums and {**known, **facts} == known:
        return
    save_whole(halves, file)
    known |= facts
    sums[file.name] = digest
    sums.pop("checkpoint", None)
    write_card(known)
    if file in PREFIXES and fits_together() and all(shipped_file.is_file() for shipped_file in PREFIXES):
        known["sha256"]["checkpoint"] = checksum(full_checkpoint())  # reads the card
        write_card(known)


def fits_together() -> bool:
    """Whether the denoiser was trained on the latents of the shipped VAE."""
    known = card()
    made_for = known.get("denoiser", {}).get("vae")
    return bool(made_for) and known.get("sha256", {}).get(VAE.name, "").startswith(made_for)


def full_checkpoint() -> dict[str, Tensor]:
    """Join the shipped weights with the seeded text encoder.

    Raises:
        BaseModelError: The shipped weights are missing or damaged, or the denoiser was trained on another VAE.
    """
    joined: dict[str, Tensor] = {}
    for file, prefix in PREFIXES.items():
        joined |= {prefix + name: tensor for name, tensor in shipped(file).items()}
    if not fits_together():
        raise BaseModelError(
            f"The base model's files do not belong together: the denoiser was trained on the latents of another VAE. "
            f"{_again(VAE, DENOISER, CARD)} If you are training it (python lab train), train the denoiser first."
        )
    joined |= {f"{TEXT_PREFIX}transformer.{name}": tensor for name, tensor in text_encoder_weights().items()}
    joined[f"{TEXT_PREFIX}logit_scale"] = torch.tensor(4.6055).half()  # CLIP's; unused, but the host requires it
    return joined


def assemble(target: Path) -> str:
    """Write the checkpoint unless it is there with the right checksum; returns the checksum.

    Raises:
        BaseModelError: The shipped weights are missing or damaged, or the disk is full.
        PermissionError: The file is not writable, on Windows while ComfyUI has it open.
    """
    wanted = card().get("sha256", {}).get("checkpoint", "")
    if target.is_file():
        try:
            if checksum(load_file(target)) == wanted:
                return str(wanted)
        except (SafetensorError, OSError):
            pass  # truncated by a full disk or a crash: written again below
    tensors = full_checkpoint()
    found = checksum(tensors)
    if wanted != found:
        raise BaseModelError(
            f"The assembled checkpoint has the checksum {found[:12]}…, not the published one: {CARD} belongs to other "
            f"weights, or numpy draws other numbers here. {_again(CARD)}"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        save_whole(tensors, target)
    except PermissionError:
        raise  # on Windows, while ComfyUI has it open: the caller says what to do
    except (SafetensorError, OSError) as error:
        raise BaseModelError(
            f"The base model could not be written to {target}: {error}. Free some space or name another folder."
        ) from error
    return found
