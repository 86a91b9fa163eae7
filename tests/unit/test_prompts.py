"""Prompts with kohya's options: what is understood, and what is refused in which words."""

from __future__ import annotations

import pytest
from lora_workbench.training.errors import SettingError
from lora_workbench.training.prompts import PaintSettings, Prompt, parse
from lora_workbench.training.watch import SampleOptions

STANDARD = PaintSettings(negative="blurry", width=512, height=768, seed=7)


def test_options_replace_the_settings_of_their_line() -> None:
    text = """
    # a comment --w 8
    zorp, a well-made hat --w 640 --h 320 --s 12 --l 1 --g 2.5 --d 42 --n bad, worse
      zorp --n
    a plain prompt, 1girl -5 --d 1 --d 2
    """
    one, two, three = parse(text, STANDARD)
    assert one == Prompt(
        "zorp, a well-made hat",
        PaintSettings("bad, worse", 640, 320, 12, 1.0, 2.5, "euler", "normal", 42),
    )
    assert (two.text, two.settings.negative, two.settings.width) == ("zorp", "", 512)
    assert (three.text, three.settings.negative, three.settings.seed) == ("a plain prompt, 1girl -5", "blurry", 2)
    assert parse("--d 3", STANDARD)[0].text == ""


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("a cat --x 3", "The prompt 'a cat --x 3' has the unknown option --x. Use --w, --h, "),
        ("a cat --ss euler_a", "unknown option --ss"),
        ("a cat --w wide", "has --w 'wide'. Write a whole number after --w."),
        ("a cat --w 512.5", "Write a whole number after --w."),
        ("a cat --l", "has --l ''. Write a number after --l."),
        ("a cat --l nan", "The prompt 'a cat --l nan': cfg is nan. Enter a finite number."),
        ("a cat --w 8", "The prompt 'a cat --w 8': width is 8. Set it to at least 64."),
        ("a cat --d -1", "seed is -1. Set it to at least 0."),
        ("# only a comment", "Write at least one in Sample Prompts"),
        ("", "Write at least one in Sample Prompts"),
    ],
)
def test_what_cannot_be_read_is_refused(line: str, words: str) -> None:
    with pytest.raises(SettingError) as raised:
        SampleOptions(prompts=line)
    assert words in str(raised.value)
