"""What the doctor says is trained is what ComfyUI's tokenizers make of a caption.

sd-scripts PR #336, kohya_ss #1725.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

CAPTIONS = [
    "miku (vocaloid), hat", "(16:9)", "(taken at 10:30)", "smile :)", ":( a, (b)", ":) ((a))", "((a) b)", "(a:1.0)",
    "()", "a) b (c)", "(x:inf)", "(:3)", "(a:b)", r"miku \(vocaloid\)", r"(a\)", r"a \\(b)", "(o)_(o)", "(a:1_0)",
    "((())", "[a]",
]  # fmt: skip


@pytest.fixture(scope="module")
def host(comfy_host: Any) -> Any:
    from comfy import sd1_clip

    return sd1_clip


@pytest.fixture(scope="module")
def tokenizers(comfy_host: Any) -> dict[str, Any]:
    """CLIP, and a tokenizer that ignores weights, made of the same vocabulary."""
    from comfy.sd1_clip import SD1Tokenizer

    class WithoutWeights(SD1Tokenizer):
        def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **kwargs: Any) -> Any:
            return super().tokenize_with_weights(text, return_word_ids, disable_weights=True, **kwargs)

    return {"CLIP": SD1Tokenizer(), "without weights": WithoutWeights()}


def of_host(host: Any, text: str) -> list[tuple[str, float]]:
    pieces = host.token_weights(host.escape_important(text), 1.0)
    return [(host.unescape_important(piece), weight) for piece, weight in pieces]


def test_a_text_is_read_as_the_host_reads_it(host: Any) -> None:
    from lora_workbench.training.captions.prompt_weights import pieces_of

    draw = random.Random(0)
    signs = ["(", ")", "\\(", "\\)", "(a:1.5)", ":", "2", "b ", ",", "\\"]
    texts = CAPTIONS + ["".join(draw.choices(signs, k=draw.randrange(1, 14))) for _ in range(20_000)]
    assert sum("(" in text for text in texts) > 10_000
    for text in texts:
        assert pieces_of(text) == of_host(host, text) or "nan" in text, text


@pytest.mark.parametrize("caption", [*CAPTIONS, '{"a": "miku (vocaloid), [b]"}'])
@pytest.mark.parametrize("kind", ["CLIP", "without weights"])
def test_escaped_parentheses_are_trained_as_plain_ones(kind: str, caption: str, tokenizers: dict[str, Any]) -> None:
    from lora_workbench.training.captions.edits import CaptionEdit, edit_captions
    from lora_workbench.training.captions.prompt_weights import unbalanced, weighted_parts

    (escaped,) = edit_captions([caption], CaptionEdit("escape parentheses"))
    assert weighted_parts(escaped) == [] and unbalanced(escaped) is None
    (entry,) = tokenizers[kind].tokenize_with_weights(escaped).values()
    plain = caption.replace("\\(", "(").replace("\\)", ")")
    inner = tokenizers[kind].clip_l.tokenizer(plain)["input_ids"]
    assert [token for token, _ in entry[0]][: len(inner)] == inner
    assert {weight for _, weight in entry[0]} == {1.0}


def test_a_caption_that_the_doctor_names_has_weights(tokenizers: dict[str, Any]) -> None:
    from lora_workbench.training.captions.prompt_weights import weighted_parts

    (entry,) = tokenizers["CLIP"].tokenize_with_weights("a hat (taken at 10:30)").values()
    assert {weight for _, weight in entry[0]} == {1.0, 30.0}
    (part,) = weighted_parts("a hat (taken at 10:30)")
    assert (part.written, part.read, part.weight) == ("(taken at 10:30)", "taken at 10", 30.0)


def test_the_host_has_no_other_escape(host: Any) -> None:
    assert of_host(host, r"a \[b\] (c)") == [(r"a \[b\] ", 1.0), ("c", 1.1)]
