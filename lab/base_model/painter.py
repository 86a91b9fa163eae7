"""Paints pictures with the host's own sampler in this process, like KSampler without a server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..world.world import SIDE

STEPS, GUIDANCE = 20, 4.0
SAMPLER, SCHEDULER = "euler", "simple"
TOGETHER = 8  # pictures in one batch


class Painter:
    """A checkpoint, loaded as CheckpointLoaderSimple loads it."""

    def __init__(self, checkpoint: Path) -> None:
        from . import host

        with torch.inference_mode():
            self.model, self.clip, self.vae = host.load_checkpoint(str(checkpoint))
        self._known: dict[str, Any] = {}

    def conditioning(self, prompt: str) -> Any:
        """Encode a prompt, or take it from the cache."""
        if prompt not in self._known:
            self._known[prompt] = self.encode(prompt)
        return self._known[prompt]

    def encode(self, prompt: str) -> Any:
        """Encode a prompt as CLIPTextEncode does."""
        return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(prompt))

    def through_vae(self, pictures: Sequence[Image.Image]) -> list[Image.Image]:
        """Encode and decode pictures of 128 × 128."""
        pixels = torch.from_numpy(np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])).float() / 255
        return self._pictures(self.vae.encode(pixels))

    def _pictures(self, latents: torch.Tensor) -> list[Image.Image]:
        pixels = (self.vae.decode(latents).clamp(0, 1).cpu().numpy() * 255).round().astype(np.uint8)
        return [Image.fromarray(picture) for picture in pixels]

    def paint(self, prompts: Sequence[str], seeds: Sequence[int], model: Any = None) -> list[Image.Image]:
        """Sample pictures of 128 × 128, several prompts in one batch.

        Args:
            prompts: One for each picture.
            seeds: One for each picture's noise, drawn as KSampler draws it for a single picture.
            model: A MODEL to use instead of the checkpoint's own, for example with a LoRA applied.
        """
        from . import host

        painted = []
        with torch.inference_mode():
            one = torch.zeros(1, 16, SIDE // 8, SIDE // 8)
            empty = self.conditioning("")
            for at in range(0, len(prompts), TOGETHER):
                wanted = [self.conditioning(prompt)[0] for prompt in prompts[at : at + TOGETHER]]
                pooled = torch.cat([extra["pooled_output"] for _, extra in wanted])
                positive = [[torch.cat([hidden for hidden, _ in wanted]), {**wanted[0][1], "pooled_output": pooled}]]
                noise = torch.cat([host.noise_of(one, seed) for seed in seeds[at : at + TOGETHER]])
                out = host.sample(
                    model or self.model, noise, STEPS, GUIDANCE, SAMPLER, SCHEDULER, positive, empty,
                    one.repeat(len(wanted), 1, 1, 1), disable_pbar=True, seed=0,
                )  # fmt: skip
                painted += self._pictures(out)
        return painted
