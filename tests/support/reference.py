"""The small models once more, as diffusers builds them: what the engine's numbers are held against.

Weights go across by the host's own maps, so nothing of our naming is taken for granted. One picture's inputs
(`Ask`) are put to both sides in each one's own words.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from . import small_models

# The parts of each projection that diffusers can fuse, in the order of its rows.
FUSED = {"to_qkv": ("to_q", "to_k", "to_v"), "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj")}

Sizes = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


@dataclass(frozen=True)
class Ask:
    """What a denoiser is asked.

    Attributes:
        latent: [B, C, H, W], as the network takes it (of unit variance for diffusion models).
        time: [B], 0 to 999, or sigma · 1000 of a flow.
        text: [B, tokens, width].
        pooled: [B, width], or None.
        sizes: For SDXL (original size, crop corner, target size) of each picture, each horizontal first.
    """

    latent: Tensor
    time: Tensor
    text: Tensor
    pooled: Tensor | None = None
    sizes: tuple[Sizes, ...] = ()


def text_of(name: str, seeds: list[int]) -> tuple[Tensor, Tensor | None]:
    """Text and pooled embeddings of `small_models.conditioning`, as a batch that autograd may save."""
    made = [small_models.conditioning(name, seed=seed)[0] for seed in seeds]
    text = torch.cat([entry[0] for entry in made]).clone()
    pooled = [entry[1]["pooled_output"] for entry in made if "pooled_output" in entry[1]]
    return text, torch.cat(pooled).clone() if pooled else None


def an_ask(name: str, side: int = 16) -> Ask:
    """Two pictures that differ in everything, seeded."""
    latent = torch.randn(small_models.latent_shape(name, side, side, 2), generator=torch.Generator().manual_seed(3))
    text, pooled = text_of(name, [1, 2])
    sizes: tuple[Sizes, ...] = ()
    if name == "sdxl":
        sizes = (((640, 480), (24, 8), (128, 192)), ((300, 900), (0, 77), (128, 128)))
    return Ask(latent, torch.tensor([37.0, 810.0]), text, pooled, sizes)


def diffusers_twin(name: str, patcher: Any) -> Any:
    """The same small model in diffusers' own class with the host model's weights, fp32, frozen.

    Args:
        name: `sd15_two`, `sdxl` or `sd3`.
        patcher: The host's ModelPatcher; no LoRA may be on it.
    """
    twin = _build(name)
    places = _places(name, patcher)
    source = patcher.model.diffusion_model.state_dict()
    with torch.no_grad():
        for key, tensor in twin.state_dict().items():
            tensor.copy_(_at(places[key], source))
    return twin.requires_grad_(False)


def twin_modules(name: str, patcher: Any, paths: list[str]) -> dict[str, str]:
    """The module of the twin (with its projections fused) that is each layer of the host.

    Args:
        name: The small model.
        patcher: The host's ModelPatcher.
        paths: Of layers below the diffusion model.
    """
    held: dict[str, list[str]] = {}
    for key, place in _places(name, patcher).items():
        weight = place if isinstance(place, str) else place[0]
        held.setdefault(weight, []).append(key.removesuffix(".weight"))
    fused = {part: whole for whole, parts in FUSED.items() for part in parts}
    found = {}
    for path in paths:
        parent, _, last = held[f"{path}.weight"][0].rpartition(".")
        found[path] = f"{parent}.{fused[last]}" if len(held[f"{path}.weight"]) > 1 else f"{parent}.{last}"
    return found


def ask_twin(twin: Any, ask: Ask) -> Tensor:
    """Ask the diffusers model; what it answers can be trained on."""
    if type(twin).__name__.startswith("SD3"):
        return twin(ask.latent, ask.text, ask.pooled, ask.time).sample
    added = None
    if ask.sizes:
        # In diffusers' order, which is vertical first.
        time_ids = [[*original[::-1], *corner[::-1], *target[::-1]] for original, corner, target in ask.sizes]
        added = {"text_embeds": ask.pooled, "time_ids": torch.tensor(time_ids)}
    return twin(ask.latent, ask.time, ask.text, added_cond_kwargs=added).sample


def ask_host(patcher: Any, ask: Ask) -> Tensor:
    """Ask the host's model as it stands, with whatever is patched into its weights or put on its layers."""
    model = patcher.model
    device = next(model.diffusion_model.parameters()).device
    pooled = ask.pooled
    if ask.sizes:
        assert pooled is not None
        rows = []
        for index, (original, corner, target) in enumerate(ask.sizes):
            words = ("width", "height", "crop_w", "crop_h", "target_width", "target_height")
            numbers = dict(zip(words, (*original, *corner, *target), strict=True))
            rows.append(model.encode_adm(pooled_output=pooled[index : index + 1], device="cpu", **numbers))
        pooled = torch.cat(rows)
    with torch.no_grad():
        return model.diffusion_model(
            ask.latent.to(device), ask.time.to(device), context=ask.text.to(device),
            y=None if pooled is None else pooled.to(device), transformer_options={},
        ).float().cpu().clone()  # fmt: skip


def fuse_projections(twin: Any) -> None:
    """Fuse q, k and v of an SD3 twin as the host does, so that one LoRA acts on the three of them; leave UNets be.

    diffusers fuses the weights; but its processor for fused projections (as of 0.42) leaves out the norms of
    queries and keys, so the usual one stays, and is shown the parts of the fused projection.
    """
    attentions = [module for module in twin.modules() if getattr(module, "add_q_proj", None) is not None]
    for attention in attentions:
        with torch.no_grad():
            attention.fuse_projections()
        for fused, parts in FUSED.items():
            rows = getattr(attention, parts[0]).out_features
            for position, part in enumerate(parts):
                # Looked up at each call, since peft puts a module of its own in that place.
                setattr(attention, part, _Rows(partial(getattr, attention, fused), position * rows, rows))
    twin.requires_grad_(False)


class _Rows(nn.Module):
    """Some rows of what a fused projection of the same attention gives."""

    def __init__(self, fused: Callable[[], nn.Module], start: int, rows: int) -> None:
        super().__init__()
        self.fused, self.start, self.rows = fused, start, rows

    def forward(self, x: Tensor) -> Tensor:
        return self.fused()(x).narrow(-1, self.start, self.rows)


def _build(name: str) -> Any:
    import diffusers

    down, cross_down, up, cross_up = "DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"
    if name == "sd15_two":
        # What diffusers calls attention_head_dim is the number of heads.
        return diffusers.UNet2DConditionModel(
            block_out_channels=(320, 320), down_block_types=(cross_down, cross_down), attention_head_dim=8,
            up_block_types=(cross_up, cross_up), layers_per_block=1, cross_attention_dim=768,
        )  # fmt: skip
    if name == "sdxl":
        return diffusers.UNet2DConditionModel(
            block_out_channels=(320, 320, 320), down_block_types=(down, cross_down, cross_down),
            up_block_types=(cross_up, cross_up, up), layers_per_block=1, cross_attention_dim=2048,
            mid_block_type=None, transformer_layers_per_block=(0, 2, 5), attention_head_dim=5,
            reverse_transformer_layers_per_block=((1, 1), (1, 1), (0, 0)), use_linear_projection=True,
            addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
        )  # fmt: skip
    assert name == "sd3", name
    return diffusers.SD3Transformer2DModel(
        sample_size=32, num_layers=2, attention_head_dim=64, num_attention_heads=2, joint_attention_dim=64,
        caption_projection_dim=128, pooled_projection_dim=64, pos_embed_max_size=16, qk_norm="rms_norm",
    )  # fmt: skip


def _places(name: str, patcher: Any) -> dict[str, Any]:
    import comfy.utils

    config = patcher.model.model_config.unet_config
    if name == "sd3":
        return comfy.utils.mmdit_to_diffusers(config)
    return comfy.utils.unet_to_diffusers(config)


def _at(place: Any, source: dict[str, Tensor]) -> Tensor:
    """The tensor that a place of the host's map stands for."""
    if isinstance(place, str):
        return source[place]
    weight, part, *change = place
    tensor = source[weight]
    if part is not None:
        tensor = tensor.narrow(*part)
    for function in change:  # between the two halves' orders; swapping is its own inverse
        tensor = function(tensor)
    return tensor
