"""A captioner on the host's own text generation: a CLIP that sees pictures and writes, as in TextGenerate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from ..cache.store import cache_key
from ..data.tensors import image_tensor
from ..errors import UserError
from ..host.identity import patches_identity, weights_identity
from .vision_language import QUESTION, SentenceSettings

LARGEST = 1024  # pixels of the longer side: enough for a caption, and text encoders take memory by the pixel

_NOT_A_CAPTIONER = (
    "This CLIP {problem}. Connect a text encoder that sees pictures and writes, such as Qwen-VL or Gemma 3, on a "
    "ComfyUI that has the node Generate Text; or disconnect it and choose a captioner."
)


class TextGenerator:
    """Captions pictures with a CLIP.

    Args:
        clip: The CLIP socket's object.
        settings: How it writes.

    Raises:
        UserError: The host or the CLIP cannot write text.
    """

    batch = 1

    def __init__(self, clip: Any, settings: SentenceSettings) -> None:
        if not hasattr(clip, "generate"):
            raise UserError(_NOT_A_CAPTIONER.format(problem="cannot write text"))
        self.clip, self.settings = clip, settings
        # Everything a caption depends on besides the picture.
        self.identity = cache_key(
            "host-2", weights_identity(clip.cond_stage_model), patches_identity(clip.patcher), settings.prompt,
            settings.max_tokens,
        )  # fmt: skip

    def caption(self, pictures: Sequence[Image.Image]) -> list[str]:
        """Describe some pictures.

        Raises:
            UserError: The CLIP cannot see pictures or cannot write text.
        """
        return [self._caption(picture) for picture in pictures]

    def _caption(self, picture: Image.Image) -> str:
        prompt = self.settings.prompt.strip() or QUESTION
        small = picture.copy()
        small.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
        tokens = self.clip.tokenize(prompt, image=image_tensor(small), min_length=1)
        # The host puts a picture among the tokens. An encoder without vision drops it and would invent a caption.
        if not any(not isinstance(entry[0], int) for chunks in tokens.values() for row in chunks for entry in row):
            raise UserError(_NOT_A_CAPTIONER.format(problem="cannot see pictures"))
        try:
            generated = self.clip.generate(tokens, do_sample=False, max_length=self.settings.max_tokens)
        except (AttributeError, NotImplementedError, TypeError) as error:  # raised by encoders that only encode
            raise UserError(_NOT_A_CAPTIONER.format(problem=f"cannot write text ({error})")) from error
        return " ".join(str(self.clip.decode(generated)).split())
