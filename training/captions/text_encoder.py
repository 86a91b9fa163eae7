"""A captioner made of the host's own text generation: a CLIP that sees pictures and writes, as TextGenerate uses it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from PIL import Image

from ..data.tensors import image_tensor
from ..errors import UserError
from ..host.identity import patches_identity, weights_identity
from .vision_language import QUESTION, SentenceSettings

LARGEST = 1024  # pixels of the longer side: a caption needs no more, and text encoders take memory by the pixel

_NO_WRITER = (
    "This CLIP {what}: connect a text encoder that sees pictures and writes, such as Qwen-VL or Gemma 3, on a ComfyUI "
    "that has the node Generate Text; or disconnect it and choose a captioner."
)


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
        if not hasattr(clip, "generate"):
            raise UserError(_NO_WRITER.format(what="writes no text"))
        self.clip, self.settings = clip, settings
        known = f"{weights_identity(clip.cond_stage_model)}|{patches_identity(clip.patcher)}"
        written = f"{settings.prompt}|{settings.max_tokens}"  # all that shapes a caption
        self.identity = hashlib.sha256(f"host-2|{known}|{written}".encode()).hexdigest()

    def caption(self, pictures: Sequence[Image.Image]) -> list[str]:
        """Describe some pictures.

        Raises:
            UserError: The CLIP does not see pictures, or writes no text.
        """
        return [self._caption(picture) for picture in pictures]

    def _caption(self, picture: Image.Image) -> str:
        prompt = self.settings.prompt.strip() or QUESTION
        small = picture.copy()
        small.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
        tokens = self.clip.tokenize(prompt, image=image_tensor(small), min_length=1)
        # The host puts a picture among the tokens; an encoder without eyes leaves it out and would invent something.
        if not any(not isinstance(entry[0], int) for chunks in tokens.values() for row in chunks for entry in row):
            raise UserError(_NO_WRITER.format(what="sees no pictures"))
        try:
            made = self.clip.generate(tokens, do_sample=False, max_length=self.settings.max_tokens)
        except (AttributeError, NotImplementedError, TypeError) as error:  # as encoders that only encode answer
            raise UserError(_NO_WRITER.format(what=f"writes no text ({error})")) from error
        return " ".join(str(self.clip.decode(made)).split())
