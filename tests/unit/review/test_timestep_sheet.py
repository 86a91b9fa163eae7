"""The sheet of Loss Options: how often each part of the schedule is trained."""

from __future__ import annotations

import pytest
from lora_workbench.training.review import palette
from lora_workbench.training.review.timestep_sheet import BINS, message_sheet, shares, timestep_sheet
from support.sheets import drawn_text


def test_shares_are_percent_of_all() -> None:
    assert shares([0.0, 0.5, 0.999, 1.0])[:: BINS - 1] == [25, 50]
    assert shares([0.0, 0.999], [3.0, 1.0])[:: BINS - 1] == [75, 25]
    assert sum(shares([number / 97 for number in range(97)])) == pytest.approx(100)
    assert shares([0.5], [0.0]) == [0.0] * BINS


def test_bars_are_as_high_as_their_shares() -> None:
    drawn = [0.0] * BINS
    drawn[10], drawn[40] = 40, 20
    with drawn_text() as texts:
        sheet = timestep_sheet("Timesteps of SD15: uniform", drawn, None)
    texts.check(sheet)
    pixels = [sheet.getpixel((x, y)) for x in (92 + round(21.52 * 10.5), 92 + round(21.52 * 40.5)) for y in range(404)]
    first, second = (sum(pixel == palette.BLUE for pixel in half) for half in (pixels[:404], pixels[404:]))
    assert first == 2 * second and first == round(40 / 50 * 320)
    assert "loss weight" not in texts.all() and "50%" in texts.all()


def test_weights_are_a_second_curve() -> None:
    with drawn_text() as texts:
        sheet = timestep_sheet("Timesteps", [2.0] * BINS, [0.0] * 49 + [100.0], "weighting is min-SNR. " * 8)
    texts.check(sheet)
    assert "loss weight" in texts.all() and "weighting is min-SNR" in texts.all()
    colors = {color for _, color in sheet.getcolors(100_000) or ()}
    assert {palette.AMBER, palette.BLUE} <= colors


def test_without_a_model_it_says_so() -> None:
    with drawn_text() as texts:
        texts_sheet = message_sheet("Loss Options", "Connect a MODEL.")
    texts.check(texts_sheet)
    assert "Connect a MODEL." in texts.all()
