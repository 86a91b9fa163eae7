"""Paints pictures with the host's own sampler, in this process: what KSampler does, without a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from .world import SIDE

STEPS, GUIDANCE = 20, 4.0
SAMPLER, SCHEDULER = "euler", "simple"


class Painter:
    """A checkpoint, loaded as CheckpointLoaderSimple loads it."""

    def __init__(self, checkpoint: Path) -> None:
        import comfy.sd

        with torch.inference_mode():
            self.model, self.clip, self.vae = comfy.sd.load_checkpoint_guess_config(str(checkpoint))[:3]
        self._known: dict[str, Any] = {}

    def conditioning(self, prompt: str) -> Any:
        """Encode a prompt as CLIPTextEncode does; each one once."""
        if prompt not in self._known:
            self._known[prompt] = self.clip.encode_from_tokens_scheduled(self.clip.tokenize(prompt))
        return self._known[prompt]

    def paint(self, prompt: str, seed: int, model: Any = None) -> Image.Image:
        """Sample one picture, 128 × 128.

        Args:
            prompt: What it is to show.
            seed: Of the noise, drawn as KSampler draws it.
            model: A MODEL to use instead of the checkpoint's own, with a LoRA on it, say.
        """
        import comfy.sample

        with torch.inference_mode():
            latent = torch.zeros(1, 16, SIDE // 8, SIDE // 8)
            out = comfy.sample.sample(
                model or self.model, comfy.sample.prepare_noise(latent, seed), STEPS, GUIDANCE, SAMPLER, SCHEDULER,
                self.conditioning(prompt), self.conditioning(""), latent, disable_pbar=True, seed=seed,
            )  # fmt: skip
            pixels = self.vae.decode(out)[0].clamp(0, 1).cpu().numpy()
        return Image.fromarray((pixels * 255).round().astype(np.uint8))
