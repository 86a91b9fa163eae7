"""The history of a run: the same lines on disk, in the browser and in what is asked for later."""

from __future__ import annotations

import json
import time

import pytest
from lora_workbench.training.errors import UserError
from lora_workbench.training.events import Place, SilentSink, StepEvent
from lora_workbench.training.host import pages
from lora_workbench.training.run import checkpoints, history, past
from lora_workbench.training.run.curve import MOST, Curve
from lora_workbench.training.run.folder import RunFolder
from lora_workbench.training.run.history import History


class Heard(SilentSink):
    """Keeps the lines."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict]] = []

    def record(self, run: str, line: dict) -> None:
        """Keep it."""
        self.lines.append((run, line))


def step(number: int, loss: float = 0.5, **concepts: float) -> StepEvent:
    return StepEvent(number, 10, 1, 2, loss, loss, 1e-4, number * 0.5, 0.5, concepts)


def test_what_is_read_from_the_log_is_what_was_said_live() -> None:
    written: list[str] = []
    sink = Heard()
    told = History("ab", sink, written.append, pytest.fail)
    told.add("begin", steps=3, epochs=1)
    for number in range(1, 4):
        told.step(step(number, 0.1 * number, cat=0.2, dog=0.3 * number))
    told.add("end", outcome="finished", step=3)
    assert history.read("".join(written)) == told.told()
    assert [line["kind"] for _, line in sink.lines] == ["begin", "step", "step", "step", "end"]
    assert {run for run, _ in sink.lines} == {"ab"}
    curve = told.told()["curve"]
    assert curve["step"] == [1, 2, 3] and curve["loss"] == pytest.approx([0.1, 0.2, 0.3])
    assert curve["concepts"]["dog"] == pytest.approx([0.3, 0.6, 0.9]) and curve["rate"] == [1e-4] * 3
    assert told.told()["last"]["seconds_per_step"] == 0.5


def test_a_line_that_was_cut_off_is_left_out() -> None:
    whole = json.dumps({"kind": "step", "step": 1, "epoch": 1, "loss": 1.0, "rate": 0.1})
    read = history.read(f'{whole}\n{{"kind": "begin"}}\n[1]\n{whole[:-9]}')
    assert read["curve"]["step"] == [1] and read["lines"] == [{"kind": "begin"}]


def test_a_log_is_read_whatever_its_characters_and_wherever_it_was_cut(tmp_path) -> None:
    folder = RunFolder(tmp_path, "run")
    told = History("ab", SilentSink(), folder.append_log, pytest.fail)
    told.step(step(1, 0.5, **{"caf\u00e9\u0085\u2028": 0.5}))
    told.add("hint", text="one")
    with (folder.path / "log.jsonl").open("ab") as file:
        file.write('{"kind": "hint", "text": "é'.encode()[:-1])
    read = past.told(folder.path)
    assert read["curve"]["step"] == [1] and list(read["curve"]["concepts"]) == ["caf\u00e9\u0085\u2028"]
    assert read["lines"] == [{"kind": "hint", "text": "one"}]
    assert checkpoints.summary(folder.path).losses == (0.5,)


def test_a_disk_that_refuses_the_log_is_named_once_and_nothing_is_lost() -> None:
    written, troubles = [], []
    is_full = True

    def write(text: str) -> None:
        if is_full:
            raise UserError("the disk is full")
        written.append(text)

    told = History("ab", SilentSink(), write, troubles.append)
    told.add("begin", steps=3)
    told.add("hint", text="one")
    assert [str(error) for error in troubles] == ["the disk is full"]
    is_full = False
    told.add("hint", text="two")
    assert [json.loads(row)["kind"] for row in "".join(written).splitlines()] == ["begin", "hint", "hint"]


def test_memory_is_said_when_it_changes(monkeypatch) -> None:
    monkeypatch.setattr(history, "_MEMORY_EVERY", 0.0)
    sink = Heard()
    told = History("ab", sink, lambda text: None, pytest.fail)
    for used in (100, 100, 100.5, 120, 119, 80):
        told.memory("plain", lambda: used, 1, False)  # noqa: B023
    told.memory("checkpointing", lambda: 81, 1, False)
    assert [(line["rung"], line["bytes"]) for _, line in sink.lines] == [
        ("plain", 100), ("plain", 120), ("plain", 80), ("checkpointing", 81),
    ]  # fmt: skip


def test_memory_is_counted_once_a_second() -> None:
    sink, counts = Heard(), iter(range(10, 100, 10))
    told = History("ab", sink, lambda text: None, pytest.fail)
    for rung, is_last in [("plain", False), ("plain", False), ("lower", False), ("lower", False), ("lower", True)]:
        told.memory(rung, lambda: next(counts), 1, is_last)
    assert [(line["rung"], line["bytes"]) for _, line in sink.lines] == [("plain", 10), ("lower", 20), ("lower", 30)]


def test_a_long_curve_is_thinned_to_means() -> None:
    curve = Curve()
    for number in range(1, 50_001):
        curve.add(number, float(number), 1e-4, {"cat": 2.0} if number % 2 else {})
    columns = curve.columns()
    assert MOST // 2 <= len(columns["step"]) <= MOST and columns["step"][-1] == 50_000
    assert columns["step"] == sorted(set(columns["step"]))
    # Each point is the mean of the steps since the one before it.
    before = [0, *columns["step"][:-1]]
    expected = [(first + 1 + last) / 2 for first, last in zip(before, columns["step"], strict=True)]
    assert columns["loss"] == pytest.approx(expected)
    assert set(columns["concepts"]["cat"]) == {2.0}
    assert columns["count"] == [last - first for first, last in zip(before, columns["step"], strict=True)]
    assert sum(columns["counts"]["cat"]) == 25_000


def test_steps_that_are_done_again_replace_the_old_ones() -> None:
    curve = Curve()
    for number, loss in [(1, 1.0), (2, 2.0), (3, 9.0), (2, 4.0), (3, 5.0)]:
        curve.add(number, loss, 1e-4, {})
    assert curve.columns()["step"] == [1, 2, 3] and curve.columns()["loss"] == [1.0, 4.0, 5.0]


def test_pages_get_at_most_ten_events_a_second(monkeypatch) -> None:
    sent: list[tuple[float, dict]] = []
    monkeypatch.setattr(pages, "send", lambda event, data: sent.append((time.monotonic(), data)))
    told = pages.Pages(Place("flow", "3:7", "prompt"))
    began = time.monotonic()
    count = 0
    while time.monotonic() - began < 0.45:
        told.add("ab", {"kind": "step", "step": count})
        count += 1
        time.sleep(0.002)
    time.sleep(0.25)  # what waits is sent without another line
    assert [line["step"] for _, data in sent for line in data["lines"]] == list(range(count))
    assert len(sent) <= (time.monotonic() - began) * 10 + 1
    gaps = [later - earlier for (earlier, _), (later, _) in zip(sent, sent[1:], strict=False)]
    assert min(gaps) > 0.08
    assert {(data["workflow"], data["node"], data["prompt"], data["run"]) for _, data in sent} == {
        ("flow", "3:7", "prompt", "ab")
    }


def test_folders_that_are_no_runs_are_left_out(tmp_path) -> None:
    for name, text in [
        ("one", '{"id": "1", "started_at": 5}'), ("two", '{"id": "2", "started_at": 9}'), ("bad", "{"),
        ("odd", '{"id": ["x"]}'),
    ]:  # fmt: skip
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(text)
    (tmp_path / "cache").mkdir()
    assert [told["id"] for _, told in past.runs(tmp_path)] == ["2", "1"]
    assert past.folder_of(tmp_path, "1") == tmp_path / "one" and past.folder_of(tmp_path, "3") is None
    assert past.told(tmp_path / "one")["state"] == "broken off" and past.told(tmp_path / "one")["lines"] == []
    assert not list(past.runs(tmp_path / "nowhere"))
