"""Paints prompts along the user's own path: CLIPTextEncode, KSampler and VAEDecode, in this process."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import comfy.model_management as management
import comfy.sample
import comfy.samplers
import numpy as np
import torch
from comfy.cli_args import args
from node_helpers import conditioning_set_values
from PIL import Image
from torch import Tensor

from ..prompts import PaintSettings, Prompt
from .apply import apply_lora
from .model import HostModel
from .text import Conditioning
from .vae import seeded


def samplers() -> list[str]:
    """Names of the host's samplers."""
    return list(comfy.samplers.KSampler.SAMPLERS)


def schedulers() -> list[str]:
    """Names of the host's schedulers."""
    return list(comfy.samplers.KSampler.SCHEDULERS)


def size_of(vae: Any, settings: PaintSettings) -> tuple[int, int]:
    """Width and height that a picture gets: those asked for, rounded down to the VAE's step."""
    step = int(vae.spacial_compression_encode())
    width, height = (max(side // step, 1) * step for side in (settings.width, settings.height))
    return width, height


class Painter:
    """Paints prompts as CLIPTextEncode, KSampler and VAEDecode would. The sockets are not changed.

    All texts are encoded at the beginning. Decode all pictures at the end: a card may hold one model at a time. The
    state of the global random generators is restored after every call. Every call raises what the host's code raises,
    its cancel included.

    Args:
        model: MODEL socket.
        clip: CLIP socket.
        vae: VAE socket.
        prompts: What will be painted.
        lora: A LORA_MODEL to apply; None: none.
        strength: Of the LoRA, on the model and on the text encoders.
    """

    def __init__(
        self, model: Any, clip: Any, vae: Any, prompts: Sequence[Prompt],
        lora: Mapping[str, Tensor] | None = None, strength: float = 1.0,
    ) -> None:  # fmt: skip
        self._model, self._vae = model, vae
        self._texts: dict[str, Conditioning] = {}
        with torch.inference_mode(), seeded():
            if lora is not None:
                self._model, clip = apply_lora(model, clip, dict(lora), strength, strength)
            for text in (text for prompt in prompts for text in (prompt.text, prompt.settings.negative)):
                if text not in self._texts:
                    self._texts[text] = clip.encode_from_tokens_scheduled(clip.tokenize(text), show_pbar=False)

    def sample(self, prompt: Prompt) -> Tensor:
        """Sample one of the prompts from an empty latent of the model's own shape.

        Returns:
            Its latent [1, C, (T,) h, w].
        """
        settings = prompt.settings
        positive, negative = self._texts[prompt.text], self._texts[settings.negative]
        with torch.inference_mode(), seeded():
            if HostModel(self._model).takes_guidance:
                positive = conditioning_set_values(positive, {"guidance": settings.guidance})
            empty = self._empty(settings)
            noise = comfy.sample.prepare_noise(empty, settings.seed)
            return comfy.sample.sample(  # type: ignore[no-any-return]
                self._model, noise, settings.steps, settings.cfg, settings.sampler, settings.scheduler, positive,
                negative, empty, denoise=1.0, disable_pbar=True, seed=settings.seed,
            )  # fmt: skip

    def decode(self, latent: Tensor) -> Image.Image:
        """Decode a latent to an RGB picture, rounded as SaveImage rounds; of a video, its first picture."""
        with torch.inference_mode(), seeded():
            pixels = self._vae.decode(latent)
        pixels = pixels.reshape(-1, *pixels.shape[-3:])[0]
        return Image.fromarray(np.clip(255.0 * pixels.cpu().numpy(), 0, 255).astype(np.uint8)).convert("RGB")

    def _empty(self, settings: PaintSettings) -> Tensor:
        step = int(self._vae.spacial_compression_encode())
        width, height = size_of(self._vae, settings)
        channels = int(self._model.get_model_object("latent_format").latent_channels)
        latent = torch.zeros(
            [1, channels, height // step, width // step], device=management.intermediate_device(),
            dtype=getattr(management, "intermediate_dtype", lambda: torch.float32)(),  # newer hosts
        )  # fmt: skip
        return comfy.sample.fix_empty_latent_channels(self._model, latent)  # type: ignore[no-any-return]


@contextmanager
def take_back(model: Any, clip: Any) -> Iterator[None]:
    """Take LoRAs off the weights of MODEL and CLIP after the block; the host leaves them on until the next use."""
    try:
        yield
    finally:
        with torch.inference_mode():
            management.load_models_gpu([clip.patcher, model])


def picture_metadata(prompt: Any, pnginfo: Mapping[str, Any] | None) -> dict[str, str] | None:
    """The text that SaveImage would write into a PNG, by key; None where ComfyUI was started to write none.

    Args:
        prompt: What the host gives a node as its hidden `prompt`.
        pnginfo: What it gives as `extra_pnginfo`.
    """
    if args.disable_metadata:
        return None
    found = {} if prompt is None else {"prompt": prompt}
    return {name: json.dumps(value) for name, value in {**found, **(pnginfo or {})}.items()}
