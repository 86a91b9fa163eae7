"""Models with random weights that the step benchmarks train, made by the host's own classes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...training.disk import write_whole

if TYPE_CHECKING:
    import torch

# A full-size Stable Diffusion 1.5 UNet, 859.5 M parameters, in the form the host's detection expects.
SD15_CONFIG: dict[str, Any] = {
    "use_checkpoint": False, "image_size": 32, "use_spatial_transformer": True, "legacy": False,
    "adm_in_channels": None, "in_channels": 4, "out_channels": 4, "model_channels": 320,
    "use_temporal_resblock": False, "use_temporal_attention": False, "use_linear_in_transformer": False,
    "context_dim": 768, "num_res_blocks": [2, 2, 2, 2], "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
}  # fmt: skip
SDXL_CONFIG: dict[str, Any] = SD15_CONFIG | {
    "num_classes": "sequential", "adm_in_channels": 2816, "use_linear_in_transformer": True, "context_dim": 2048,
    "num_res_blocks": [2, 2, 2], "channel_mult": [1, 2, 4], "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_middle": 10, "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
}  # fmt: skip
ZIMAGE_CONFIG: dict[str, Any] = {
    "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 3840, "cap_feat_dim": 2560, "n_layers": 30,
    "n_heads": 30, "n_kv_heads": 30, "qk_norm": True, "axes_dims": [32, 48, 48], "axes_lens": [1536, 512, 512],
    "rope_theta": 256.0, "ffn_dim_multiplier": 8 / 3, "z_image_modulation": True, "time_scale": 1000.0,
    "pad_tokens_multiple": 32,
}  # fmt: skip
LUMINA2_CONFIG: dict[str, Any] = {
    "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 2304, "cap_feat_dim": 2304, "n_layers": 26,
    "n_heads": 24, "n_kv_heads": 8, "qk_norm": True, "axes_dims": [32, 32, 32], "axes_lens": [300, 512, 512],
    "rope_theta": 10000.0, "ffn_dim_multiplier": 4.0,
}  # fmt: skip
SD3_CONFIG: dict[str, Any] = {
    "in_channels": 16, "patch_size": 2, "out_channels": 16, "depth": 24, "input_size": None, "adm_in_channels": 2048,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 1536}},
    "num_patches": 192 * 192, "pos_embed_max_size": 192, "pos_embed_scaling_factor": None,
    "x_block_self_attn_layers": [],
}  # fmt: skip
SD35_CONFIG: dict[str, Any] = SD3_CONFIG | {
    "num_patches": 384 * 384, "pos_embed_max_size": 384, "qk_norm": "rms", "x_block_self_attn_layers": list(range(13)),
}  # fmt: skip
FLUX_CONFIG: dict[str, Any] = {
    "image_model": "flux", "axes_dim": [16, 56, 56], "num_heads": 24, "mlp_ratio": 4.0, "theta": 10000,
    "out_channels": 16, "qkv_bias": True, "in_channels": 16, "hidden_size": 3072, "context_in_dim": 4096,
    "patch_size": 2, "vec_in_dim": 768, "depth": 19, "depth_single_blocks": 38, "guidance_embed": True,
}  # fmt: skip
CHROMA_CONFIG: dict[str, Any] = {
    "image_model": "chroma", "axes_dim": [16, 56, 56], "num_heads": 24, "mlp_ratio": 4.0, "theta": 10000,
    "qkv_bias": True, "in_channels": 64, "out_channels": 64, "in_dim": 64, "out_dim": 3072, "hidden_dim": 5120,
    "hidden_size": 3072, "context_in_dim": 4096, "patch_size": 2, "n_layers": 5, "depth": 19,
    "depth_single_blocks": 38,
}  # fmt: skip
QWEN_CONFIG: dict[str, Any] = {"image_model": "qwen_image", "in_channels": 64, "num_layers": 60}


@dataclass(frozen=True)
class Shape:
    """A model's sizes and what it takes.

    Attributes:
        cls: Name of the class in `comfy.supported_models`.
        config: Its `unet_config`.
        context: Width of the text embedding.
        tokens: Length of the text embedding.
        channels: Latent channels.
        pooled: Width of `pooled_output`; 0 without one.
        sigma: A noise level of its schedule.
        video: Whether its latents have a dimension of time.
    """

    cls: str
    config: dict[str, Any] = field(repr=False)
    context: int
    tokens: int = 77
    channels: int = 4
    pooled: int = 0
    sigma: float = 5.0
    video: bool = False


# A narrow model has the layers of the full one with 32 channels, so that the work of a kernel hardly counts.
_NARROW = {"model_channels": 32, "context_dim": 64}
SHAPES = {
    "sd15": Shape("SD15", SD15_CONFIG, 768),
    "sd15-narrow": Shape("SD15", SD15_CONFIG | _NARROW, 64),
    "sdxl": Shape("SDXL", SDXL_CONFIG, 2048, pooled=1280),
    # With fewer layers too: it is only there to see that everything works.
    "sdxl-narrow": Shape(
        "SDXL", SDXL_CONFIG | _NARROW | {"num_head_channels": 16, "transformer_depth": [0, 0, 1, 1, 1, 1],
        "transformer_depth_output": [0, 0, 0, 1, 1, 1, 1, 1, 1], "transformer_depth_middle": 1}, 64, pooled=1280,
    ),
    "zimage": Shape("ZImage", ZIMAGE_CONFIG, 2560, 128, 16, sigma=0.5),
    "zimage-narrow": Shape(
        "ZImage", ZIMAGE_CONFIG | {"dim": 256, "n_heads": 2, "n_kv_heads": 2, "n_layers": 2, "cap_feat_dim": 64},
        64, 32, 16, sigma=0.5,
    ),
    # The lengths of the text are the least that the host's own text encoders make, or a long caption's.
    "sd3": Shape("SD3", SD3_CONFIG, 4096, 154, 16, pooled=2048, sigma=0.5),
    "sd35": Shape("SD3", SD35_CONFIG, 4096, 154, 16, pooled=2048, sigma=0.5),
    "flux": Shape("Flux", FLUX_CONFIG, 4096, 256, 16, pooled=768, sigma=0.5),
    "chroma": Shape("Chroma", CHROMA_CONFIG, 4096, 256, 16, pooled=768, sigma=0.5),
    "lumina2": Shape("Lumina2", LUMINA2_CONFIG, 2304, 128, 16, sigma=0.5),
    "qwen": Shape("QwenImage", QWEN_CONFIG, 3584, 128, 16, sigma=0.5, video=True),
}  # fmt: skip


def random_model(shape: Shape, dtype: torch.dtype, device: torch.device, *, draws: bool = True) -> Any:
    """A MODEL with random weights that is already on its device.

    The host makes its models in inference mode; the caller decides whether these are inference tensors too.

    Args:
        shape: Which model.
        dtype: Of its weights.
        device: Where it computes and stays.
        draws: Whether weights are drawn. Tensors without data cannot be.
    """
    import comfy.model_patcher
    import torch

    model = _config(shape, dtype).get_model({}, "", device).requires_grad_(False)
    for name, part in model.named_children():
        if name != "diffusion_model" and device.type != "meta":  # that was made there
            part.to(device)
    if draws:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(1)
            randomize(model.diffusion_model.state_dict())
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=device)


def randomize(state: dict[str, torch.Tensor]) -> None:
    """Draw every tensor in place: matrices scaled by their fan-in, gains 1, biases 0."""
    for name, tensor in state.items():
        if tensor.ndim > 1:
            tensor.normal_(std=tensor[0].numel() ** -0.5)
        else:
            tensor.fill_(1.0 if name.endswith("weight") else 0.0)


def make_sd15_file(path: Path) -> None:
    """Write the full-size SD1.5 UNet with seeded random weights, fp16, 1.7 GB."""
    import torch
    from safetensors.torch import save_file

    state = _config(SHAPES["sd15"], torch.float16).get_model({}, "").diffusion_model.state_dict()
    torch.manual_seed(1)
    randomize(state)
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    write_whole(path, lambda part: save_file(tensors, part))


def latent(shape: Shape, side: int, seed: int = 0) -> torch.Tensor:
    """A latent of random numbers [1, C, (T,) h, w]."""
    import torch

    source = torch.Generator().manual_seed(seed)
    frames = (1,) if shape.video else ()
    return torch.randn(1, shape.channels, *frames, side // 8, side // 8, generator=source)


def conditioning(shape: Shape) -> list[list[Any]]:
    """A CONDITIONING of random numbers, as a text encoder makes one."""
    import torch

    source = torch.Generator().manual_seed(1)
    options = {"pooled_output": torch.randn(1, shape.pooled, generator=source)} if shape.pooled else {}
    return [[torch.randn(1, shape.tokens, shape.context, generator=source), options]]


def _config(shape: Shape, dtype: torch.dtype) -> Any:
    import comfy.ops
    import comfy.supported_models

    config = getattr(comfy.supported_models, shape.cls)(dict(shape.config))
    config.unet_config.update(shape.config)  # the class' own settings must not replace these
    config.set_inference_dtype(dtype, None)
    # No layer computes in fp8; the host casts such weights when it uses them.
    config.custom_operations = comfy.ops.manual_cast if dtype.itemsize == 1 else comfy.ops.disable_weight_init
    return config
