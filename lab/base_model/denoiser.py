"""Trains the base model's denoiser: the host's MMDiT, 4 blocks, 256 wide, 10.5 M parameters, rectified flow."""

from __future__ import annotations

import copy
import hashlib
import math
import random
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from ..world import figures, known, world
from .assemble import (
    DENOISER,
    DEPTH,
    LATENT_SCALE,
    LATENT_SHIFT,
    PATCHES,
    TEXT_TOKENS,
    VAE,
    card,
    denoiser_config,
    ship,
    shipped,
    text_encoder_weights,
)
from .compute import autocast
from .progress import SAVE_EVERY, Checkpoints, save_whole, say, warm_up, warm_up_from

SCENES, FIGURES = 4000, 2000  # different ones
DRAWN = 3  # pictures of each, which differ in what the captions leave open
DATA_SEED = 1
BATCH = 16
RATE = 6e-4
SHIFT = 1.5  # of the logit-normal timesteps
EMPTY = 0.1  # share of empty captions, for guidance
SHORT_TEXT = 18  # tokens of the longest caption, ends included; see `train`
LONG_EVERY = 10
TAILS = 64  # captions whose padding is kept
EMA = 0.999


def new_denoiser() -> torch.nn.Module:
    """The host's MMDiT with seeded weights, initialised as by Stability: gates and output start at zero."""
    from . import host

    model = host.new_mmdit(denoiser_config())
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "adaLN_modulation" in name or name.startswith("final_layer.linear"):
                parameter.zero_()
            elif parameter.ndim >= 2:
                bound = math.sqrt(6 / (parameter.shape[0] + parameter[0].numel()))  # Xavier
                parameter.copy_((torch.rand(parameter.shape, generator=source) * 2 - 1) * bound)
            else:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
        positions = host.get_2d_sincos_pos_embed(64 * DEPTH, PATCHES)
        model.pos_embed.copy_(torch.from_numpy(np.asarray(positions)).float()[None])
    return model


# -- the training set ----------------------------------------------------------------------------


def data_files(folder: Path) -> tuple[Path, Path]:
    """The files of the training set: latents, which belong to one world and VAE, and encoded captions."""
    drawn_by = b"".join(Path(module.__file__).read_bytes() for module in (world, figures, known))
    recipe = f"{SCENES} {FIGURES} {DRAWN} {DATA_SEED}".encode() + drawn_by
    stamp = hashlib.sha256(recipe).hexdigest()[:12]
    return folder / f"latents-{stamp}-{vae_stamp()}.safetensors", folder / f"text-{stamp}.safetensors"


def vae_stamp() -> str:
    """Identifies the VAE: a denoiser only works in its latent space."""
    return str(card()["sha256"][VAE.name])[:12]


def make_data(folder: Path, vae: torch.nn.Module) -> None:
    """Draw the world, encode pictures and captions, and save both; done once."""
    latents_file, text_file = data_files(folder)
    if latents_file.exists() and text_file.exists():
        return
    rng = random.Random(DATA_SEED)
    subjects = [known.of_scene(world.random_scene(rng)) for _ in range(SCENES)]
    subjects += [known.of_figure(figures.random_figure(rng)) for _ in range(FIGURES)]
    captions = [subject.sentence for subject in subjects] + [subject.tags for subject in subjects] + [""]
    distinct = list(dict.fromkeys(captions))
    say(f"data: {SCENES} scenes, {FIGURES} figures, {len(distinct)} captions")
    if not text_file.exists():
        hidden, pooled = encode_captions(distinct, SHORT_TEXT)
        tails = encode_captions(distinct[:TAILS], TEXT_TOKENS)[0][:, SHORT_TEXT:].contiguous()
        number = {caption: n for n, caption in enumerate(distinct)}
        index = torch.tensor([[number[subject.sentence], number[subject.tags]] for subject in subjects])
        text = {"hidden": hidden, "pooled": pooled, "tails": tails, "index": index}
        save_whole({**text, "empty": torch.tensor([number[""]])}, text_file)
    latents = []
    with torch.no_grad(), autocast():
        for at in range(0, len(subjects) * DRAWN, 64):
            numbers = range(at, min(at + 64, len(subjects) * DRAWN))
            drawn = [subjects[n // DRAWN].draw(rng) for n in numbers]
            pixels = torch.from_numpy(np.stack([np.asarray(p) for p in drawn])).permute(0, 3, 1, 2).float() / 127.5 - 1
            latents.append(model_latents(vae, pixels).half())
            if at % 1600 == 0:
                say(f"data: encoded {at}/{len(subjects) * DRAWN} pictures")
    save_whole({"latents": torch.cat(latents).contiguous()}, latents_file)


def model_latents(vae: torch.nn.Module, pixels: Tensor) -> Tensor:
    """Encode pictures [B, 3, H, W], -1 to 1, to the denoiser's latents."""
    return (vae.encode(pixels).float() - LATENT_SHIFT) * LATENT_SCALE


def encode_captions(captions: list[str], length: int) -> tuple[Tensor, Tensor]:
    """Encode captions with the host's own SD3 text encoder, CLIP-L only.

    Args:
        captions: At most 75 tokens each.
        length: Tokens to encode. A token sees only those before it, so the result equals the first of all 77.

    Returns:
        Hidden states [N, length, 768] and pooled outputs [N, 768], fp16: the host pads both with zeros.

    Raises:
        ValueError: A caption has more tokens.
    """
    from . import host

    clip = host.text_encoder(text_encoder_weights())
    encoder = clip.cond_stage_model.clip_l
    positions = encoder.transformer.text_model.embeddings.position_embedding
    positions.weight = torch.nn.Parameter(positions.weight[:length], requires_grad=False)
    hidden, pooled = [], []
    started = time.monotonic()
    with torch.no_grad(), autocast():
        for at in range(0, len(captions), 32):
            tokens = [[token for token, _ in clip.tokenize(c)["l"][0]] for c in captions[at : at + 32]]
            end = tokens[0][-1]
            longest = max(row.index(end) + 1 for row in tokens)
            if longest > length:
                raise ValueError(f"A caption has {longest} tokens, only {length} are encoded.")
            out = encoder([row[:length] for row in tokens])
            hidden.append(out[0].half())
            pooled.append(out[1].half())
            if at % 1600 == 0:
                say(f"data: encoded {at}/{len(captions)} captions, {time.monotonic() - started:.0f} s")
    return torch.cat(hidden), torch.cat(pooled)


# -- the training --------------------------------------------------------------------------------


def train(state: Checkpoints, steps: int, *, go_on: bool = True) -> None:
    """Train from where the last run or the shipped weights stopped, and ship the result.

    Most steps see only the first 18 text tokens, which is half the work. One in ten sees all 77, like the host's.
    The tokens after a caption are padding, which the model must ignore, so they may come from another caption.

    Args:
        state: The work folder.
        steps: Total steps.
        go_on: Begin with the shipped weights if they had more steps than the saved state.
    """
    latents, text = (load_file(file) for file in data_files(state.folder))
    data, kept = latents | text, f"denoiser-{vae_stamp()}"
    model = new_denoiser().train()
    average = copy.deepcopy(model).requires_grad_(False)
    trainable = list(model.requires_grad_(True).parameters())
    optimizer = torch.optim.AdamW(trainable, lr=RATE, weight_decay=0.01, betas=(0.9, 0.98), fused=True)
    step = state.load(kept, model=model, average=average, optimizer=optimizer)
    before = card().get("denoiser", {})
    if go_on and DENOISER.is_file() and before.get("vae") == vae_stamp() and before["steps"] > step:
        # Another machine's work, without its optimizer.
        weights = {name: tensor.float() for name, tensor in shipped(DENOISER).items()}
        model.load_state_dict(weights)
        average.load_state_dict(weights)
        step = before["steps"]
        warm_up_from(optimizer, step)
    seen, started, losses = step, time.monotonic(), []
    while step < steps:
        source = torch.Generator().manual_seed(step)
        cosine = (1 + math.cos(math.pi * step / steps)) / 2
        for group in optimizer.param_groups:
            group["lr"] = RATE * warm_up(optimizer, step, 200) * (0.02 + 0.98 * cosine)
        tokens = TEXT_TOKENS if step % LONG_EVERY == LONG_EVERY - 1 else SHORT_TEXT
        loss = flow_loss(model, data, tokens, source)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        step += 1
        decay = min(EMA, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        losses.append(loss.item())
        if step % 100 == 0 or step == steps:
            per_step = (time.monotonic() - started) / (step - seen)
            say(f"denoiser {step}/{steps} loss {np.mean(losses[-100:]):.4f} {per_step:.3f} s/step")
        if step % SAVE_EVERY == 0 or step == steps:
            state.save(kept, step, model=model, average=average, optimizer=optimizer)
    ship(DENOISER, average.state_dict(), denoiser={"steps": step, "vae": vae_stamp()})


def flow_loss(model: torch.nn.Module, data: dict[str, Tensor], tokens: int, source: torch.Generator) -> Tensor:
    """Mean squared error of the velocity on one random batch (Esser et al. 2024)."""
    pick = torch.randint(len(data["latents"]), (BATCH,), generator=source)
    x0 = data["latents"][pick].float()
    form = torch.randint(2, (BATCH,), generator=source)
    text = data["index"][pick // DRAWN, form]
    empty = torch.rand(BATCH, generator=source) < EMPTY
    text = torch.where(empty, data["empty"][0], text)
    hidden = data["hidden"][text]
    if tokens > SHORT_TEXT:
        hidden = torch.cat([hidden, data["tails"][torch.randint(TAILS, (BATCH,), generator=source)]], dim=1)
    context, pooled = padded_text(hidden, data["pooled"][text])
    u = torch.sigmoid(torch.randn(BATCH, generator=source))
    sigma = (SHIFT * u / (1 + (SHIFT - 1) * u))[:, None, None, None]
    noise = torch.randn(x0.shape, generator=source)
    with autocast():
        out = model((1 - sigma) * x0 + sigma * noise, sigma.flatten() * 1000, context=context, y=pooled)
    return (out.float() - (noise - x0)).square().mean()


def padded_text(hidden: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor]:
    """Pad CLIP-L's outputs to SD3's widths, as the host does without the other encoders."""
    hidden, pooled = hidden.float(), pooled.float()
    return torch.nn.functional.pad(hidden, (0, 4096 - 768)), torch.nn.functional.pad(pooled, (0, 1280))
