"""A captioner made of the host's own text generation: a CLIP that sees pictures and writes, as TextGenerate uses it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from PIL import Image

from ..captioners.vision_language import QUESTION, SentenceSettings
from ..errors import UserError
from ..tensors import image_tensor
from .identity import patches_identity, weights_identity


class TextGenerator:
    """Captions with a CLIP.

    Args:
        clip: CLIP socket.
        settings: How it writes.

    Raises:
        UserError: This host or this CLIP writes no text.
    """

    batch = 1

    def __init__(self, clip: Any, settings: SentenceSettings) -> None:
        if not hasattr(clip, "generate") or not hasattr(clip.cond_stage_model, "generate"):
            raise UserError(
                "This CLIP writes no text: connect a text encoder that does, such as Qwen-VL or Gemma 3, on a ComfyUI "
                "that has the node Generate Text; or disconnect it and choose a captioner."
            )
        self.clip, self.settings = clip, settings
        known = f"{weights_identity(clip.cond_stage_model)}|{patches_identity(clip.patcher)}|{settings}"
        self.identity = hashlib.sha256(f"host-1|{known}".encode()).hexdigest()

    def caption(self, pictures: Sequence[Image.Image]) -> list[str]:
        """Describe some pictures."""
        return [self._caption(picture) for picture in pictures]

    def _caption(self, picture: Image.Image) -> str:
        prompt = self.settings.prompt.strip() or QUESTION
        tokens = self.clip.tokenize(prompt, image=image_tensor(picture), min_length=1)
        made = self.clip.generate(tokens, do_sample=False, max_length=self.settings.max_tokens)
        return " ".join(str(self.clip.decode(made)).split())
