"""The MODEL as the engine sees it: what it predicts from a noised latent, in its own terms.

Everything goes through the host's own methods (`extra_conds`, `apply_model`, `model_sampling`, `latent_format`), so
an architecture the host knows is an architecture we train.
"""

from __future__ import annotations

import logging
import math
import traceback
from pathlib import Path
from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_sampling
import torch
from torch import Tensor, nn

from ..adapters.targets import is_target
from .frozen import is_conv, is_linear, torch_attention

log = logging.getLogger(__name__)

Conditioning = list[list[Any]]  # what a CONDITIONING socket carries: [[tensor, {name: value}], …]


def normal(value: Any, device: torch.device | None = None) -> Any:
    """Return a copy that autograd may save: the host's tensors were made in inference mode.

    Must be called outside inference mode. Lists, tuples and dicts are gone through; other values stay.
    """
    if isinstance(value, Tensor):
        copy = value.detach().clone()
        return copy if device is None else copy.to(device)
    if isinstance(value, dict):
        return {key: normal(item, device) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(normal(item, device) for item in value)
    return value


class HostModel:
    """A MODEL on its device, ready to predict.

    Attributes:
        model: The host's BaseModel.
        device: Where it computes.
    """

    def __init__(self, patcher: Any) -> None:
        self.patcher = patcher
        self.model: Any = patcher.model
        self.device: torch.device = patcher.load_device
        # Options of the user's own MODEL (attention patches and the like) hold in training too.
        options = dict(patcher.model_options.get("transformer_options", {}))
        self.transformer_options: dict[str, Any] = {**options, "optimized_attention_override": torch_attention}

    # -- what it is made of ------------------------------------------------------------------

    def targets(self) -> dict[str, nn.Module]:
        """The layers a LoRA is trained on, by path below the diffusion model."""
        modules = self.model.diffusion_model.named_modules()
        return {
            path: module
            for path, module in modules
            if (is_linear(module) or is_conv(module)) and is_target(path, module)
        }

    @property
    def sampling(self) -> Any:
        """The noise schedule in force, a ModelSampling node's included."""
        return self.patcher.get_model_object("model_sampling")

    @property
    def is_flow(self) -> bool:
        """Whether the model is a rectified flow: it mixes data and noise linearly, sigma from 0 to 1."""
        return isinstance(self.sampling, comfy.model_sampling.CONST)

    @property
    def family(self) -> str:
        """Class of the host's model config, such as `SD15` or `Flux`."""
        return type(self.model.model_config).__name__

    @property
    def prediction(self) -> str:
        """What the network predicts, in the host's words: eps, v_prediction, flow, flux, edm …"""
        return self.model.model_type.name.lower()

    @property
    def latent_channels(self) -> int:
        """Channels of its latents."""
        return int(self.model.latent_format.latent_channels)

    @property
    def latent_dimensions(self) -> int:
        """Dimensions of its latents beside batch and channels: 2, or 3 where there is one of time."""
        return int(self.model.latent_format.latent_dimensions)

    @property
    def flow_shift(self) -> float | None:
        """How far the schedule of a flow leans to high noise, as a factor on the odds of noise; None for others."""
        shift = getattr(self.sampling, "shift", None)
        if not self.is_flow or shift is None:
            return None
        # Flux's schedule keeps the logarithm (the mu of its paper's time shift).
        return math.exp(shift) if isinstance(self.sampling, comfy.model_sampling.ModelSamplingFlux) else float(shift)

    @property
    def takes_guidance(self) -> bool:
        """Whether the model has a guidance input."""
        return bool(self.model.model_config.unet_config.get("guidance_embed", False))

    def load(self, latent_shape: tuple[int, ...], checkpointing: bool) -> None:
        """Have the host bring the model to its device, leaving room for a training step.

        Args:
            latent_shape: [B, C, (T,) H, W] of the largest micro-batch.
            checkpointing: Whether blocks are recomputed, which needs less room.
        """
        # The host knows what a forward pass takes; keeping activations for backward takes several times that.
        room = self.patcher.memory_required(list(latent_shape)) * (2 if checkpointing else 5)
        comfy.model_management.load_models_gpu([self.patcher], memory_required=room)

    # -- a training step's parts -------------------------------------------------------------

    def latents_in(self, latents: Tensor) -> Tensor:
        """Scale VAE latents to what the model was trained on."""
        return self.model.process_latent_in(latents)

    def sigma_table(self) -> Tensor:
        """The noise levels of the schedule, rising, on the CPU: what timesteps are drawn from."""
        return normal(self.sampling.sigmas).float().cpu()

    def noised(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """Return the latents at noise level sigma [B], as the sampler would meet them."""
        return self.sampling.noise_scaling(sigma, noise, x0, False)

    def output_scale(self, sigma: Tensor, ndim: int) -> Tensor:
        """How far the clean-image estimate moves per unit of network output, at each sigma [B].

        Every kind of prediction is linear in the network's output, so two points give the slope. Dividing an error
        of the estimate by it gives the error of the prediction itself: eps, v or velocity, whatever it is.

        Returns:
            [B, 1, …] with `ndim` dimensions, never zero for a sigma of the schedule.
        """
        ones = torch.ones(sigma.shape[0], *[1] * (ndim - 1), device=sigma.device)
        zeros = torch.zeros_like(ones)
        at_one = self.sampling.calculate_denoised(sigma, ones, zeros)
        return at_one - self.sampling.calculate_denoised(sigma, zeros, zeros)

    def conditions(self, conditioning: Conditioning, noise: Tensor, extra: dict[str, Any]) -> dict[str, Any]:
        """Turn one picture's CONDITIONING into the model's own inputs.

        Args:
            conditioning: As an encoder made it; only its first entry is trained.
            noise: [1, C, …] of the picture, for its shape.
            extra: Per-picture values such as width, height, crop_w, crop_h, guidance. What a model has no use
                for it ignores.

        Returns:
            Condition objects of the host by name, for `denoised`.
        """
        cross_attn, options = conditioning[0]
        values = {
            "width": noise.shape[-1] * 8,
            "height": noise.shape[-2] * 8,
            **normal(options, self.device),
            **extra,
            "cross_attn": normal(cross_attn, self.device),
            "device": self.device,
            "noise": noise,
            "latent_image": noise,
            "prompt_type": "positive",
            "seed": 0,
        }
        made = self.model.extra_conds(**values)
        return {name: cond.process_cond(batch_size=1, area=None) for name, cond in made.items()}

    def denoised(self, xt: Tensor, sigma: Tensor, conds: list[dict[str, Any]]) -> Tensor:
        """Estimate the clean latents from noised ones, each with its own conditions.

        Pictures whose conditions have the same shapes run as one batch. Texts of different lengths run one after
        the other: padding them would change what joint attention sees.

        Args:
            xt: [B, C, (T,) H, W].
            sigma: [B].
            conds: B results of `conditions`.
        """
        groups: dict[tuple[Any, ...], list[int]] = {}
        for index, cond in enumerate(conds):
            groups.setdefault(_shape_key(cond), []).append(index)
        parts: list[Tensor | None] = [None] * len(conds)
        for members in groups.values():
            first, *others = [conds[i] for i in members]
            batched = {name: cond.concat([o[name] for o in others]) for name, cond in first.items()}
            # What the sampler tells patches of the model: where in the schedule they are, and for which prompt.
            told = {"sigmas": sigma[members], "sample_sigmas": sigma[members], "cond_or_uncond": [0] * len(members)}
            out = self.model.apply_model(
                xt[members], sigma[members], transformer_options={**self.transformer_options, **told}, **batched
            )
            for index, part in zip(members, out.split(1), strict=True):
                parts[index] = part
        return torch.cat(parts)  # type: ignore[arg-type]


def _shape_key(cond: dict[str, Any]) -> tuple[Any, ...]:
    """What must be equal for two pictures to share a forward pass."""
    key: list[Any] = []
    for name, value in sorted(cond.items()):
        inner = value.cond
        if isinstance(inner, Tensor):
            key.append((name, tuple(inner.shape)))
        elif isinstance(inner, (list, tuple)):
            key.append((name, *(tuple(i.shape) if isinstance(i, Tensor) else i for i in inner)))
        else:
            key.append((name, inner))
    return tuple(key)


def comes_from_the_model(error: BaseException) -> bool:
    """Whether an error was raised by the host's own model code, rather than by a patch of another node or by us."""
    # Layers run through our functions and torch's: who called them is what counts.
    passed = (Path(__file__).parents[1], Path(torch.__file__).parent)
    frames = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    callers = [path for path in frames if not any(path.is_relative_to(folder) for folder in passed)]
    return bool(callers) and callers[-1].is_relative_to(Path(comfy.model_base.__file__).parent)
