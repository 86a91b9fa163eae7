"""The MODEL as the engine sees it: its prediction from a noised latent.

Everything goes through the host's own methods (`extra_conds`, `apply_model`, `model_sampling`, `latent_format`). So any
architecture the host knows can be trained.
"""

from __future__ import annotations

import logging
import math
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_sampling
import torch
from torch import Tensor, nn

from ..adapters.targets import is_target
from ..late import sent
from .frozen import torch_attention
from .layers import is_conv, is_linear
from .text import Conditioning
from .text_encoders import TextEncoders

log = logging.getLogger(__name__)

# Older hosts lack some of these.
_NAMES = ("IMG_TO_IMG", "X0", "EDM", "V_PREDICTION", "EPS", "COSMOS_RFLOW")
_KINDS: tuple[tuple[str, Any], ...] = (
    ("flow", comfy.model_sampling.CONST),
    *((name.lower(), kind) for name in _NAMES if (kind := getattr(comfy.model_sampling, name, None))),
)


def normal(value: Any) -> Any:
    """Return a copy that autograd can save; it cannot save the host's tensors, made in inference mode.

    Call it outside inference mode. Tensors inside lists, tuples and dicts are copied too; other values are kept, and so
    are tensors with a gradient.
    """
    if isinstance(value, Tensor):
        return value if value.requires_grad else value.detach().clone()
    if isinstance(value, dict):
        return {key: normal(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(normal(item) for item in value)
    return value


class HostModel:
    """A MODEL on its device, ready to predict.

    Args:
        patcher: MODEL socket.
        text: The text encoders that are trained with it, if any.

    Attributes:
        model: The host's BaseModel.
        device: The device it computes on.
    """

    def __init__(self, patcher: Any, text: TextEncoders | None = None) -> None:
        self.patcher, self.text = patcher, text
        self.model: Any = patcher.model
        self.device: torch.device = patcher.load_device
        # Options of the user's MODEL, such as attention patches, apply in training too.
        options = dict(patcher.model_options.get("transformer_options", {}))
        self.transformer_options: dict[str, Any] = {**options, "optimized_attention_override": torch_attention}

    # -- properties --------------------------------------------------------------------------

    @property
    def patchers(self) -> list[Any]:
        """What the host loads for training."""
        return [self.patcher, *([self.text.patcher] if self.text else [])]

    def modules(self) -> Iterator[nn.Module]:
        """All modules that the host loads for training."""
        yield from self.model.modules()
        if self.text:
            yield from self.text.modules.modules()

    def layers(self) -> Iterator[nn.Module]:
        """The modules that training computes with: those of the diffusion model and of the trained encoders."""
        yield from self.model.diffusion_model.modules()
        if self.text:
            for encoder in self.text.trained.values():
                yield from encoder.modules()

    def targets(self) -> dict[str, nn.Module]:
        """Return the layers a LoRA is trained on, by path below the diffusion model."""
        modules = self.model.diffusion_model.named_modules()
        plain = ((path.replace("_orig_mod.", ""), module) for path, module in modules)  # it may be compiled
        return {
            path: module
            for path, module in plain
            if (is_linear(module) or is_conv(module)) and is_target(path, module)
        }

    @property
    def sampling(self) -> Any:
        """The active noise schedule, including that of a ModelSampling node."""
        return self.patcher.get_model_object("model_sampling")

    @property
    def is_flow(self) -> bool:
        """Whether the model is a rectified flow, which mixes data and noise linearly with sigma from 0 to 1."""
        return isinstance(self.sampling, comfy.model_sampling.CONST)

    @property
    def family(self) -> str:
        """Class of the host's model config, such as `SD15` or `Flux`."""
        return type(self.model.model_config).__name__

    @property
    def prediction(self) -> str:
        """What the network predicts by the sampling in force: eps, v_prediction, flow, edm, x0 …

        A ModelSampling node puts another sampling in the place of the model's own, which `model_type` names.
        """
        # The more special first: each of the host's kinds is made of the one after it.
        return next((name for name, kind in _KINDS if isinstance(self.sampling, kind)), "unknown")

    @property
    def zero_terminal_snr(self) -> bool:
        """Whether the schedule of a model of noise or v ends in noise alone."""
        return bool(getattr(self.sampling, "zsnr", False))

    @property
    def patch_size(self) -> int:
        """Side of a token in latent positions; 2 where the model does not say."""
        size = getattr(self.model.diffusion_model, "patch_size", None) or 2
        return int(size[-1] if isinstance(size, (list, tuple)) else size)

    @property
    def latent_channels(self) -> int:
        """Number of channels of its latents."""
        return int(self.model.latent_format.latent_channels)

    @property
    def latent_dimensions(self) -> int:
        """Number of latent dimensions besides batch and channels: 2, or 3 with time."""
        return int(self.model.latent_format.latent_dimensions)

    @property
    def flow_shift(self) -> float | None:
        """The factor by which a flow's schedule raises the odds of noise; None for other models."""
        shift = getattr(self.sampling, "shift", None)
        if not self.is_flow or shift is None:
            return None
        # Flux's schedule stores the logarithm (mu in the time shift of its paper).
        return math.exp(shift) if isinstance(self.sampling, comfy.model_sampling.ModelSamplingFlux) else float(shift)

    @property
    def takes_guidance(self) -> bool:
        """Whether the model has a guidance input."""
        return bool(self.model.model_config.unet_config.get("guidance_embed", False))

    @property
    def computes_in(self) -> torch.dtype:
        """The dtype that the host would compute in."""
        return self.model.manual_cast_dtype or self.model.get_dtype()  # type: ignore[no-any-return]

    def estimated(self, latent_shape: tuple[int, ...]) -> int:
        """Bytes that the host reckons a forward pass takes.

        Args:
            latent_shape: [B, C, (T,) H, W].
        """
        return int(self.model.memory_required(list(latent_shape)))  # the patcher adds what its own plans need

    # -- a training step's parts -------------------------------------------------------------

    def latents_in(self, latents: Tensor) -> Tensor:
        """Scale VAE latents to the range the model was trained on."""
        return self.model.process_latent_in(latents)

    def sigma_table(self) -> Tensor:
        """Return the noise levels of the schedule, from which timesteps are drawn: ascending, on the CPU."""
        return normal(self.sampling.sigmas).float().cpu()

    def noised(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """Return the latents at noise level sigma [B], as the sampler would see them."""
        return self.sampling.noise_scaling(sigma, noise, x0, False)

    def output_scale(self, sigma: Tensor, ndim: int) -> Tensor:
        """Return the slope of the clean-image estimate over the network output, at each sigma [B].

        Every kind of prediction is linear in the network's output, so two points give the slope. An error of the
        estimate divided by the slope is the error of the prediction itself, be it eps, v or velocity.

        Returns:
            [B, 1, …] with `ndim` dimensions, never zero for a sigma of the schedule.
        """
        ones = torch.ones(sigma.shape[0], *[1] * (ndim - 1), device=sigma.device)
        zeros = torch.zeros_like(ones)
        at_one = self.sampling.calculate_denoised(sigma, ones, zeros)
        return at_one - self.sampling.calculate_denoised(sigma, zeros, zeros)

    def input_scale(self, sigma: Tensor, ndim: int) -> Tensor:
        """Return the slope of the clean-image estimate over the noised latents, at each sigma [B].

        The estimate is linear in them too.

        Returns:
            [B, 1, …] with `ndim` dimensions.
        """
        ones = torch.ones(sigma.shape[0], *[1] * (ndim - 1), device=sigma.device)
        return self.sampling.calculate_denoised(sigma, torch.zeros_like(ones), ones)

    def conditions(self, conditioning: Conditioning, noise: Tensor, extra: dict[str, Any]) -> dict[str, Any]:
        """Convert one picture's CONDITIONING to the model's own inputs.

        Args:
            conditioning: The output of a text encoder. Only its first entry is trained.
            noise: [1, C, …], in the shape of the picture's latents.
            extra: Values of this picture, such as width, height, crop_w, crop_h and guidance. The model ignores values
                it does not use.

        Returns:
            Condition objects of the host by name, for `denoised`.
        """
        cross_attn, options = conditioning[0]
        values = {
            "width": noise.shape[-1] * 8,
            "height": noise.shape[-2] * 8,
            **normal(options),  # on the CPU, as the host keeps them: some models compute on them there
            **extra,
            "cross_attn": normal(cross_attn),
            "device": self.device,
            "noise": noise,
            "latent_image": noise,
            "prompt_type": "positive",
            "seed": 0,
        }
        made = self.model.extra_conds(**values)
        alone = {name: cond.process_cond(batch_size=1, area=None) for name, cond in made.items()}
        return {name: self._sent(cond) for name, cond in alone.items()}

    def _sent(self, cond: Any) -> Any:
        """A condition on the device, where the host would send it with a wait."""
        if isinstance(cond, comfy.conds.CONDRegular) and isinstance(cond.cond, Tensor):
            return cond._copy_with(sent(cond.cond, self.device))
        return cond

    def denoised(self, xt: Tensor, sigma: Tensor, conds: list[dict[str, Any]]) -> Tensor:
        """Estimate the clean latents from noised ones, each picture with its own conditions.

        Pictures whose conditions have the same shapes run as one batch. Texts of different lengths run one after
        another, because padding them would change what joint attention sees.

        Args:
            xt: [B, C, (T,) H, W].
            sigma: [B].
            conds: The results of `conditions` for the B pictures.
        """
        groups: dict[tuple[Any, ...], list[int]] = {}
        for index, cond in enumerate(conds):
            groups.setdefault(_shape_key(cond), []).append(index)
        parts: list[Tensor | None] = [None] * len(conds)
        for members in groups.values():
            first, *others = [conds[i] for i in members]
            batched = {name: cond.concat([o[name] for o in others]) for name, cond in first.items()}
            # The sampler gives patches of the model these values: the position in the schedule and the prompt.
            some_xt, some_sigma = (xt, sigma) if len(groups) == 1 else (xt[members], sigma[members])
            told = {"sigmas": some_sigma, "sample_sigmas": some_sigma, "cond_or_uncond": [0] * len(members)}
            out = self.model.apply_model(
                some_xt, some_sigma, transformer_options={**self.transformer_options, **told}, **batched
            )
            if len(groups) == 1:
                return out  # type: ignore[no-any-return]
            for index, part in zip(members, out.split(1), strict=True):
                parts[index] = part
        return torch.cat(parts)  # type: ignore[arg-type]


def _shape_key(cond: dict[str, Any]) -> tuple[Any, ...]:
    """Return a key that two pictures must share to run in one forward pass."""
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
    """Return whether an error was raised by the host's model code, not by another node's patch or this pack."""
    # Layers run through functions of this pack and torch, so their caller decides.
    passed = (Path(__file__).parents[1], Path(torch.__file__).parent)
    frames = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    callers = [path for path in frames if not any(path.is_relative_to(folder) for folder in passed)]
    return bool(callers) and callers[-1].is_relative_to(Path(comfy.model_base.__file__).parent)
