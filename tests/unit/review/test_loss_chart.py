"""The chart of a run: lines and marks are where they belong, whatever the numbers are."""

from __future__ import annotations

import math
from typing import Any

import pytest
from lora_workbench.training.review import palette
from lora_workbench.training.review.loss_chart import ChartSettings, log_ticks, loss_chart, smoothed, ticks
from lora_workbench.training.run.past import told_of
from PIL import Image
from support.sheets import drawn_text

PLAIN = ChartSettings(smoothing=0.0)


def places(sheet: Image.Image, color: palette.Color, top: int = 98) -> list[tuple[int, int]]:
    """Pixels of a colour below the legend."""
    width, height = sheet.size
    data = sheet.load()
    return [(x, y) for y in range(top, height) for x in range(width) if data[x, y] == color]


def story(losses: list[float], *lines: dict[str, Any], rates: list[float] | None = None) -> dict[str, Any]:
    told = told_of(losses)
    told["curve"]["rate"] = rates or [0.0] * len(losses)
    return {**told, "lines": list(lines)}


@pytest.mark.parametrize("log_scale", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.9])
def test_a_flat_loss_is_a_level_line(log_scale: bool, smoothing: float) -> None:
    with drawn_text() as texts:
        sheet = loss_chart(story([0.25] * 50), ChartSettings(log_scale=log_scale, smoothing=smoothing), "run: loss")
    texts.check(sheet)
    rows = {y for _, y in places(sheet, palette.BLUE)}
    assert 1 <= len(rows) <= 3 and max(rows) - min(rows) == len(rows) - 1
    (box,) = [box for text, box in texts.texts if text == "0.25"]
    assert abs((box[1] + box[3]) / 2 - sum(rows) / len(rows)) <= 2, "it is not at its tick"


def test_a_falling_loss_falls_and_an_outlier_does_not_flatten_it() -> None:
    losses = [1.0 - step / 500 for step in range(300)]
    found = places(loss_chart(story(losses), PLAIN), palette.BLUE)
    leftmost, rightmost = min(found), max(found)
    assert leftmost[1] < rightmost[1] - 350
    losses[150] = 40.0
    (_, top), (_, bottom) = (least(places(loss_chart(story(losses), PLAIN), palette.BLUE)) for least in (min, max))
    assert top < bottom - 350


@pytest.mark.parametrize("log_scale", [False, True])
def test_the_smallest_chart_has_room_for_its_lines(log_scale: bool) -> None:
    names = [f"{number}_a_concept_with_a_long_name" for number in range(6)]
    losses = [0.5 - step / 500 for step in range(40)]
    told = story(losses, *(
        {"kind": "held_out", "step": step, "loss": 0.4, "base": 0.5,
         "concepts": {name: {"loss": 0.4, "base": 0.5} for name in names}} for step in (0, 20, 39)
    ))  # fmt: skip
    told["curve"]["concepts"] = {name: [loss + 0.1 * at for loss in losses] for at, name in enumerate(names, 1)}
    told["curve"]["counts"] = {name: [1] * len(losses) for name in names}
    sheet = loss_chart(told, ChartSettings(width=480, height=320, log_scale=log_scale), "run: loss")
    found = {y for _, y in places(sheet, palette.BLUE, top=160)}
    assert sheet.size == (480, 320) and max(found) - min(found) > 5, "the loss is not seen"


def test_marks_are_where_they_belong() -> None:
    lines = [{"kind": kind, "step": step} for kind, step in (("checkpoint", 25), ("sample", 75), ("epoch", 50))]
    with drawn_text() as texts:
        sheet = loss_chart(story([0.5, 0.4] * 50, *lines), PLAIN, "run: loss")
    texts.check(sheet)
    ticks_at = {text: (box[0] + box[2]) / 2 for text, box in texts.texts if box[1] > 540}
    for color, step in ((palette.RED, 25), (palette.TEXT, 75)):
        found = [x for x, y in places(sheet, color) if y < 150]
        wanted = ticks_at["20"] + (step - 20) / 20 * (ticks_at["40"] - ticks_at["20"])
        assert found and abs((min(found) + max(found)) / 2 - wanted) <= 2, step
    assert {"checkpoint", "sample", "epoch"} <= set(texts.all().splitlines())


def test_held_out_and_rate_have_lines_and_scales_of_their_own() -> None:
    lines = [
        {"kind": "held_out", "step": step, "loss": loss, "base": 0.3} for step, loss in ((0, 0.3), (50, 0.2), (99, 0.1))
    ]
    rates = [1e-4 * (1 - step / 100) for step in range(100)]
    with drawn_text() as texts:
        sheet = loss_chart(story([0.2] * 100, *lines, rates=rates), PLAIN, "run: loss")
    texts.check(sheet)
    found = places(sheet, palette.AMBER)
    level = {y for x, y in found if x > 1000 and y < 300}
    assert level and max(level) - min(level) <= 2, "the base line is not level"
    lowest = max(found, key=lambda place: place[1])
    assert lowest[0] > 1000 and lowest[1] > max(level) + 200, "the last measurement is not below it"
    assert {"held-out", "held-out, base model", "learning rate", "rate", "0.0001"} <= set(texts.all().splitlines())


def test_held_out_concepts_have_lines_if_there_are_several() -> None:
    def line(step: int, **losses: float) -> dict[str, Any]:
        concepts = {name: {"loss": loss, "base": 0.3} for name, loss in losses.items()}
        return {"kind": "held_out", "step": step, "loss": 0.2, "base": 0.3, "concepts": concepts}

    with drawn_text() as texts:
        sheet = loss_chart(story([0.2] * 100, line(0, zorp=0.28), line(99, zorp=0.28, gub=0.1)), PLAIN)
    texts.check(sheet)
    assert {"held-out, zorp", "held-out, gub"} <= set(texts.all().splitlines())
    (zorp, gub) = (places(sheet, color) for color in ((126, 206, 130), (196, 152, 240)))
    assert max(y for _, y in zorp) < min(y for _, y in gub) and min(x for x, _ in gub) > 1000
    with drawn_text() as texts:
        loss_chart(story([0.2] * 100, line(0, zorp=0.28)), PLAIN)
    assert "zorp" not in texts.all()


def test_concepts_have_lines_if_there_are_several() -> None:
    told = story([0.2] * 10)
    told["curve"]["concepts"] = {"zorp": [0.3] * 10, "Ж": [None] * 9 + [0.1]}
    told["curve"]["counts"] = {"zorp": [1] * 10, "Ж": [0] * 9 + [1]}
    with drawn_text() as texts:
        sheet = loss_chart(told, PLAIN)
    texts.check(sheet)
    assert "zorp" in texts.all() and "concept" in texts.all()
    assert len({y for _, y in places(sheet, (126, 206, 130))}) <= 3
    told["curve"]["concepts"] = {"zorp": [0.3] * 10}
    with drawn_text() as texts:
        loss_chart(told, PLAIN)
    assert "zorp" not in texts.all()


@pytest.mark.parametrize("losses", [[], [0.5], [math.nan, 0.3, math.inf], [0.0, 0.0], [-1.0, 1.0], [1e-12, 1e12]])
@pytest.mark.parametrize("log_scale", [False, True])
def test_numbers_at_the_edge(losses: list[float], log_scale: bool) -> None:
    with drawn_text() as texts:
        sheet = loss_chart(story(losses), ChartSettings(log_scale=log_scale), "x" * 300)
    texts.check(sheet)
    assert ("No step was trained." in texts.all()) == (not losses or (log_scale and losses == [0.0, 0.0]))
    small = loss_chart(story(losses), ChartSettings(log_scale=log_scale, width=480, height=320))
    assert small.size == (480, 320)


def test_ticks_are_round_numbers() -> None:
    assert ticks(0, 1, 6) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(37, 3011, 7) == [500, 1000, 1500, 2000, 2500, 3000]
    assert log_ticks(0.015, 0.3) == pytest.approx([0.02, 0.05, 0.1, 0.2])
    assert log_ticks(1e-6, 2) == pytest.approx([10.0**n for n in range(-6, 1)])


def test_smoothing_begins_at_the_first_loss() -> None:
    ones = {1: 1, 2: 1}
    assert smoothed([(1, 4.0), (2, 2.0)], 0.5, ones) == [(1, 4.0), (2, pytest.approx(8 / 3))]
    assert smoothed([(1, 4.0), (2, 2.0)], 0.0, ones) == [(1, 4.0), (2, 2.0)]


def test_smoothing_counts_the_steps_of_a_point() -> None:
    steps = [(number, value) for number, value in enumerate([4.0] * 3 + [2.0] * 2, 1)]
    every = smoothed(steps, 0.9, {step: 1 for step, _ in steps})
    assert smoothed([(3, 4.0), (5, 2.0)], 0.9, {3: 3, 5: 2}) == [(3, 4.0), (5, pytest.approx(every[-1][1]))]
