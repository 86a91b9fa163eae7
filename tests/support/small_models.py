"""The smallest models that ComfyUI accepts, made by its own classes with seeded random weights.

Each is written to a safetensors file and loaded by the host's own loader under `torch.inference_mode()`, as a
running server does: so its weights are inference tensors. "Route A" models go through the host's real
detection. "Route B" models are too large when detection decides their width, so detection is replaced for the
moment of loading.

Needs a host on sys.path (fixture `comfy_host`); it is imported inside the functions.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

# Part of every file name: raise it when the way weights are drawn changes.
INIT_VERSION = 1


@dataclass(frozen=True)
class Spec:
    """One small model.

    Attributes:
        cls: Name of the class in `comfy.supported_models`.
        config: The `unet_config` that class is made with.
        context: Width of the text embedding.
        pooled: Width of `pooled_output`, None when the model takes none.
        tokens: Default length of the text embedding.
        channels: Latent channels.
        video: Whether latents are 5-D (batch, channels, 1 frame, height, width).
        detected: Whether the host's own detection builds it (route A).
        keys: Further tensors of the file: markers that detection looks for.
        dtype: Of the file. On the CPU both hosts hold float32 whatever this is.
    """

    cls: str
    config: dict[str, Any]
    context: int
    pooled: int | None = None
    tokens: int = 77
    channels: int = 4
    video: bool = False
    detected: bool = True
    keys: tuple[str, ...] = ()
    dtype: torch.dtype = torch.float16


def _unet(
    context: int, depth: list[int], depth_output: list[int], blocks: list[int], middle: int = 1, **more: Any
) -> dict[str, Any]:
    """A UNet config. The number of levels is free and each may be 320 wide: that is what makes it small."""
    return {
        "use_checkpoint": False, "image_size": 32, "use_spatial_transformer": True, "legacy": False,
        "adm_in_channels": None, "in_channels": 4, "out_channels": 4, "model_channels": 320,
        "use_temporal_resblock": False, "use_temporal_attention": False, "use_linear_in_transformer": True,
        "context_dim": context, "num_res_blocks": blocks, "channel_mult": [1] * len(blocks),
        "transformer_depth": depth, "transformer_depth_output": depth_output,
        "transformer_depth_middle": middle,
    } | more


# The SDXL family is told apart by transformer_depth; KOALA 700M is its smallest member.
_KOALA = _unet(2048, [0, 2, 5], [0, 0, 1, 1, 1, 1], [1, 1, 1], middle=-2,
               adm_in_channels=2816, num_classes="sequential")


def sd3_config(depth: int, context: int, pooled: int, side: int) -> dict[str, Any]:
    """An SD3 config: 64 x depth wide; `side` is the largest latent side in patches of 2."""
    return {
        "in_channels": 16, "patch_size": 2, "out_channels": 16, "depth": depth, "input_size": None,
        "adm_in_channels": pooled,
        "context_embedder_config": {"target": "torch.nn.Linear",
                                    "params": {"in_features": context, "out_features": 64 * depth}},
        "num_patches": side * side, "pos_embed_max_size": side, "pos_embed_scaling_factor": None,
        "qk_norm": "rms", "x_block_self_attn_layers": [],
    }


def _flux_config() -> dict[str, Any]:
    return {
        "image_model": "flux", "axes_dim": [16, 56, 56], "num_heads": 1, "mlp_ratio": 4.0, "theta": 10000,
        "out_channels": 16, "qkv_bias": True, "in_channels": 16, "hidden_size": 128, "context_in_dim": 64,
        "patch_size": 2, "vec_in_dim": 32, "depth": 1, "depth_single_blocks": 1, "guidance_embed": True,
    }


_ZIMAGE = {
    "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 256, "cap_feat_dim": 64,
    "n_layers": 1, "n_heads": 2, "n_kv_heads": 2, "qk_norm": True, "axes_dims": [32, 48, 48],
    "axes_lens": [1536, 512, 512],
    "rope_theta": 256.0, "ffn_dim_multiplier": 8 / 3, "z_image_modulation": True, "time_scale": 1000.0,
    "pad_tokens_multiple": 32,
}
# The last block's text branch never reaches the output: with two layers one whole block is trained.
_QWEN = {"image_model": "qwen_image", "in_channels": 64, "num_layers": 2, "num_attention_heads": 1,
         "joint_attention_dim": 64}

_PIXART = {"image_model": "pixart_sigma", "micro_condition": False, "num_heads": 2, "patch_size": 2, "hidden_size": 48,
           "in_channels": 4, "depth": 2, "model_max_length": 16, "caption_channels": 64}
_PIXELDIT = {"image_model": "pixeldit_t2i", "num_groups": 2, "hidden_size": 128, "pixel_hidden_size": 16,
             "pixel_attn_hidden_size": 128, "pixel_num_groups": 2, "patch_depth": 2, "pixel_depth": 2,
             "txt_embed_dim": 64, "txt_max_length": 16}
_PID = _PIXELDIT | {"image_model": "pid", "lq_hidden_dim": 32, "lq_num_res_blocks": 1}

_DIT: dict[str, Any] = {"context": 64, "tokens": 8, "channels": 16, "dtype": torch.bfloat16}

SPECS: dict[str, Spec] = {
    # One level, 25.8 M parameters.
    "sd15": Spec("SD15", _unet(768, [1], [1, 1], [1], use_linear_in_transformer=False), 768),
    # Two levels with a down- and an up-sampling between them, 44 M.
    "sd15_two": Spec("SD15", _unet(768, [1, 1], [1] * 4, [1, 1], use_linear_in_transformer=False), 768),
    # 87 M. The host reads v-prediction off the weights of output block 11, so there must be 12 of them.
    "sd2_v": Spec("SD20", _unet(1024, [1, 1] + [0] * 6, [1] * 3 + [0] * 9, [2] * 4), 1024),
    "sdxl": Spec("KOALA_700M", _KOALA, 2048, pooled=1280),
    "sdxl_v": Spec("KOALA_700M", _KOALA, 2048, pooled=1280, keys=("v_pred",)),
    "sd3": Spec("SD3", sd3_config(2, 64, 64, 16), pooled=64, **_DIT),
    "flux": Spec("Flux", _flux_config(), pooled=32, **_DIT),
    "zimage": Spec("ZImage", _ZIMAGE, detected=False, **_DIT),
    "qwen": Spec("QwenImage", _QWEN, video=True, detected=False, **_DIT),
    # Latents of 34 cells a side.
    "pixart": Spec("PixArtSigma", _PIXART, 64, tokens=8, detected=False, dtype=torch.bfloat16),
    # Newer hosts only; latents of 64 cells a side.
    "pixeldit": Spec("PixelDiTT2I", _PIXELDIT, detected=False, **_DIT | {"channels": 3}),
    "pid": Spec("PiD", _PID, detected=False, **_DIT | {"channels": 3}),
}


def spec_of(name: str) -> Spec:
    """The spec of `name`, with what differs between hosts filled in."""
    spec = SPECS[name]
    if name == "flux":
        from comfy.ldm.flux.model import FluxParams

        if "txt_ids_dims" in FluxParams.__dataclass_fields__:
            more = {"txt_ids_dims": [], "yak_mlp": False, "txt_norm": False}
            return replace(spec, config=spec.config | more)
        # Older hosts take 24 heads for granted when they detect Flux: 533 M parameters at the least.
        return replace(spec, detected=False)
    return spec


def is_known(name: str) -> bool:
    """Whether this ComfyUI knows the model."""
    import comfy.supported_models

    return hasattr(comfy.supported_models, SPECS[name].cls)


def latent_shape(name: str, h: int, w: int, batch: int = 1) -> tuple[int, ...]:
    """The shape of a latent of `h` x `w` cells (8 x 8 pixels each).

    Use 8 or more cells a side, for "sd2_v" 16: with fewer its middle block sees one token and its
    self-attention gets exactly zero gradient.
    """
    spec = SPECS[name]
    frames = (1,) if spec.video else ()
    return (batch, spec.channels, *frames, h, w)


def conditioning(
    name: str, seed: int = 0, length: int | None = None, guidance: float | None = None, batch: int = 1
) -> list[list[Any]]:
    """A CONDITIONING for `name` as the host's CLIPTextEncode makes it: `[[tensor, dict]]`, inference tensors.

    Args:
        name: A key of `SPECS`.
        seed: Of the random values, N(0, 1).
        length: Number of tokens, the model's usual (77 or 8) when None.
        guidance: Flux' distilled guidance, left out when None.
        batch: First dimension of every tensor.
    """
    spec = SPECS[name]
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode():
        text = torch.randn(batch, length or spec.tokens, spec.context, generator=generator)
        options: dict[str, Any] = {}
        if spec.pooled:
            options["pooled_output"] = torch.randn(batch, spec.pooled, generator=generator)
        if name == "pid":  # the picture that it enlarges
            options["lq_latent"] = torch.randn(batch, 16, 2, 2, generator=generator)
            options["degrade_sigma"] = torch.zeros(1)
    if guidance is not None:
        options["guidance"] = guidance
    return [[text, options]]


def build(name: str, folder: str | Path) -> Any:
    """Load the small model `name`, writing its file into `folder` first unless it is already there.

    Returns:
        The host's ModelPatcher. Every call loads a fresh one.
    """
    import comfy.sd

    spec = spec_of(name)
    file = Path(folder) / f"{name}-{_digest(spec)}.safetensors"
    if not file.exists():
        tensors = {key: torch.ones(()) for key in spec.keys} | diffusion_weights(spec)
        save(tensors, file)
    with torch.inference_mode(), _detection(spec):
        return comfy.sd.load_diffusion_model(str(file))


def diffusion_weights(spec: Spec, seed: int = 1) -> dict[str, torch.Tensor]:
    """Seeded random weights of the diffusion model, under its own key names."""
    import comfy.ops

    config = _model_config(spec)
    config.set_inference_dtype(spec.dtype, None)
    config.custom_operations = comfy.ops.disable_weight_init
    model = config.get_model({}, "").diffusion_model
    state = model.state_dict()
    randomize(state, seed)
    # SD 2's v-prediction is told from eps by this bias alone: its standard deviation must be above 0.09.
    telling = state.get("output_blocks.11.1.transformer_blocks.0.norm1.bias")
    if telling is not None:
        telling.mul_(10)
    return state


@torch.no_grad()
def randomize(state: dict[str, torch.Tensor], seed: int) -> None:
    """Draw every tensor in place: matrices scaled by their fan-in, gains near 1, biases near 0."""
    generator = torch.Generator().manual_seed(seed)
    for key, value in state.items():
        noise = torch.randn(value.shape, generator=generator)
        if value.ndim > 1:
            value.copy_(noise * value[0].numel() ** -0.5)
        else:
            value.copy_(noise * 0.02 + (1 if key.endswith(("weight", "scale", "gamma")) else 0))


def text_weights(seed: int = 2) -> dict[str, torch.Tensor]:
    """Seeded random CLIP-L (123 M parameters, a size the host fixes), under the keys `text_model.…`.

    Loud tokens and quiet layers: different captions give clearly different embeddings.
    """
    import comfy.clip_model
    import comfy.ops
    import comfy.sd1_clip

    config_file = Path(comfy.sd1_clip.__file__).with_name("sd1_clip_config.json")
    config = json.loads(config_file.read_text(encoding="utf-8"))
    model = comfy.clip_model.CLIPTextModel(config, torch.float16, "cpu", comfy.ops.disable_weight_init)
    generator = torch.Generator().manual_seed(seed)
    state = model.state_dict()
    for key, value in state.items():
        if "norm" in key:
            value.fill_(1.0 if key.endswith("weight") else 0.0)
            continue
        scale = 1.0 if "token_embedding" in key else 0.3 if "position_embedding" in key else 0.02
        value.copy_(torch.randn(value.shape, generator=generator) * scale)
    return state


def vae_weights(channels: int, scale: float, shift: float = 0.0) -> dict[str, torch.Tensor]:
    """A TAESD (the host's tiny VAE, 2.4 M parameters) whose weights are set by hand, so that photos survive it.

    Encoding keeps the mean colour of every 8 x 8 block of pixels, spread over all `channels`; decoding paints
    the block in that colour. Latents of photos have about unit size after the model's own scaling.

    Args:
        channels: Latent channels, a multiple of 4.
        scale: The latent format's scale_factor, by which the host multiplies latents.
        shift: The latent format's shift_factor.
    """
    from comfy.taesd.taesd import TAESD

    state = {key: torch.zeros_like(value) for key, value in TAESD(latent_channels=channels).state_dict().items()}
    index = torch.arange(channels)
    # Three orthogonal patterns of signs, one per colour: `channels` numbers hold three without loss.
    spread = 1.5 * torch.stack([torch.ones(channels), 1.0 - 2 * (index % 2), 1.0 - 2 * (index // 2 % 2)], 1)
    gather = torch.linalg.pinv(spread)
    colour = torch.eye(3)
    for key, value in state.items():
        layer = key.rpartition(".")[0]
        if not key.endswith("weight"):
            continue
        if value.shape[:2] == (64, 3):
            value[:3, :, 1, 1] = colour
        elif value.shape[:2] == (channels, 64):
            value[:, :3, 1, 1] = spread
            state[f"{layer}.bias"].copy_(-0.5 * spread.sum(1))  # colours are centred on grey
        elif value.shape[:2] == (64, channels):
            value[:3, :, 1, 1] = gather
            state[f"{layer}.bias"][:3] = 0.5
        elif value.shape[:2] == (3, 64):
            value[:, :3, 1, 1] = colour
        elif ".conv." not in key and "encoder" in key:  # strided: the mean of 2 x 2
            value[:3, :3, 1:, 1:] = colour[:, :, None, None] / 4
        elif ".conv." not in key:
            value[:3, :3, 1, 1] = colour
    state["vae_scale"] = torch.tensor(scale)
    state["vae_shift"] = torch.tensor(shift)
    return state


def checkpoint_sd15(path: str | Path, model: str = "sd15") -> Path:
    """Write a complete small SD 1.5 checkpoint (MODEL, CLIP, VAE) in half precision; 300 MB.

    Args:
        path: The safetensors file to write; its folder is made.
        model: "sd15" (one level) or "sd15_two".
    """
    text = {k: v for k, v in text_weights().items() if k.startswith("text_model.")}
    return _save_checkpoint(path, diffusion_weights(SPECS[model]), "cond_stage_model.transformer.", text,
                            vae_weights(4, 0.18215))


def checkpoint_sd3(path: str | Path, depth: int = 2) -> Path:
    """Write a complete small SD3 checkpoint with CLIP-L as its only text encoder; 260 MB.

    Args:
        path: The safetensors file to write; its folder is made.
        depth: Number of blocks; the model is 64 x depth wide. Latents may be up to 64 x 64.
    """
    # The host pads CLIP-L's 768 to the widths SD3 has with all its text encoders: 4096 and 2048.
    spec = Spec("SD3", sd3_config(depth, 4096, 2048, 32), context=4096, pooled=2048)
    return _save_checkpoint(path, diffusion_weights(spec), "text_encoders.clip_l.transformer.", text_weights(),
                            vae_weights(16, 1.5305, 0.0609))


def lora_sd15(path: Path) -> None:
    """Write a LoRA of one layer of that checkpoint, rank 4, in kohya's names."""
    rng = torch.Generator().manual_seed(0)
    layer = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    down, up = torch.randn(4, 320, generator=rng), torch.randn(320, 4, generator=rng)
    save({f"{layer}.lora_down.weight": down / 18, f"{layer}.lora_up.weight": up / 2}, path)


def cached(write: Callable[[Path], Path], folder: Path) -> Path:
    """The checkpoint that `write` (one of the two functions above) makes, from `folder` if it is there."""
    file = folder / f"{write.__name__}-v{INIT_VERSION}.safetensors"
    return file if file.exists() else write(file)


def _save_checkpoint(
    path: str | Path,
    diffusion: dict[str, torch.Tensor],
    text_prefix: str,
    text: dict[str, torch.Tensor],
    vae: dict[str, torch.Tensor],
) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = {"model.diffusion_model.": diffusion, text_prefix: text, "first_stage_model.": vae}
    save({prefix + key: value.half() for prefix, part in parts.items() for key, value in part.items()}, path)
    return path


def save(tensors: dict[str, torch.Tensor], file: Path) -> None:
    """Write a safetensors file so that another process sees all of it or nothing."""
    from safetensors.torch import save_file

    partial = file.with_suffix(f".{os.getpid()}.part")
    save_file({key: value.detach().contiguous() for key, value in tensors.items()}, partial)
    os.replace(partial, file)


def _digest(spec: Spec) -> str:
    text = repr((INIT_VERSION, spec.cls, sorted(spec.config.items()), spec.keys, spec.dtype))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _model_config(spec: Spec) -> Any:
    import comfy.supported_models

    config = getattr(comfy.supported_models, spec.cls)(dict(spec.config))
    config.unet_config.update(spec.config)  # the class' own extra config must not win over the small sizes
    return config


@contextmanager
def _detection(spec: Spec) -> Iterator[None]:
    """While loading a route B model, let detection return its config instead of the full-size one."""
    if spec.detected:
        yield
        return
    with mock.patch("comfy.model_detection.model_config_from_unet", lambda *a, **k: _model_config(spec)):
        yield
