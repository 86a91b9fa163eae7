"""What the benchmarks compare and write, without measuring anything."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def bench():
    """The modules of lab/bench, by name."""
    from lora_workbench.lab.bench import defaults, learning, run

    return SimpleNamespace(defaults=defaults, learning=learning, run=run)


def test_each_table_has_the_demo_once_and_settings_that_exist(bench: Any) -> None:
    from lora_workbench.training.config import TrainConfig

    for name, rows in bench.defaults.TRIED.items():
        own = [label for label, settings in rows.items() if bench.defaults.is_the_demos(settings)]
        assert len(own) == 1, f"{name}: {own} are the demo's"
        for label, settings in rows.items():
            changed = {key: value for key, value in settings.items() if key != "prior"}
            assert TrainConfig(**{**bench.learning.demo_settings(), **changed}), label
            known = {*bench.learning.demo_regularization(), "own"}
            assert set(settings.get("prior", {})) <= known, label


@pytest.fixture(scope="module")
def results() -> Any:
    """Reads the stored rows of a benchmark by its name."""
    from lora_workbench.lab.bench.results import read

    return read


def chosen(rows: list[dict[str, str]], **where: str) -> list[dict[str, str]]:
    return [row for row in rows if all(row[name] == value for name, value in where.items())]


def test_the_pages_hold_the_tables_of_the_stored_rows() -> None:
    from lora_workbench.lab.bench.pages import tables

    for (page, name), text in tables().items():
        shown = page.read_text(encoding="utf-8").split(f"<!-- {name} -->")[1].split(f"<!-- end {name} -->")[0]
        assert shown == f"\n{text}\n", f"{name}: run `python dev.py bench pages`"
        lines = text.splitlines()
        assert len(lines) > 3 and {line.count("|") for line in lines} <= {5, 6}, "at most five columns"


@pytest.mark.parametrize("how", ["native_by_time", "native_by_steps"])
def test_the_hosts_trainer_is_given_what_is_best_for_it(how: str, bench: Any, results: Any) -> None:
    """Of those as close as the closest in defaults.csv the one that loses least, at no edge of what was tried."""
    given = {"native_by_time": bench.learning.BEST_BY_TIME, "native_by_steps": bench.learning.BEST_BY_STEPS}[how]
    found = {
        tuple(float(part) for part in row["value"].split(", ")): row
        for row in chosen(results("defaults"), setting=how, seed="mean")
    }
    assert set(found) == set(bench.defaults.NATIVE[how]), "the rows are of what is tried"
    best = (given["learning_rate"], given["rank"])
    closest = max(float(row["likeness"]) for row in found.values())
    level = [pair for pair, row in found.items() if float(row["likeness"]) > closest - 0.025]  # a seed's worth
    assert best == min(level, key=lambda pair: float(found[pair]["lost"]))
    for tried, value in zip(zip(*bench.defaults.NATIVE[how], strict=True), best, strict=True):
        assert min(tried) < value < max(tried)


@pytest.mark.parametrize("character", ["zorp", "gub"])
def test_ours_is_ahead_of_the_hosts_trainer_at_its_default_settings(character: str, results: Any) -> None:
    """In likeness on every seed; in their mean less than five points are lost or spoiled."""
    rows = chosen(results("learning"), character=character, comfyui="0.3.75")

    def seeds(trainer: str) -> dict[str, float]:
        return {row["seed"]: float(row["likeness"]) for row in chosen(rows, trainer=trainer) if row["seed"].isdigit()}

    ours = seeds("LoRA Workbench")
    assert len(ours) >= 3
    for how in ("same time", "same steps"):
        theirs = seeds(f"TrainLoraNode, default settings, {how}")
        assert theirs.keys() == ours.keys() and all(ours[seed] > theirs[seed] for seed in ours)
    (mean,) = chosen(rows, trainer="LoRA Workbench", seed="mean")
    assert float(mean["lost"]) < 5 and float(mean["spoiled"]) < 5


def test_the_page_tells_what_the_rows_hold(results: Any) -> None:
    """Numbers of its sentences that no table shows."""
    page = " ".join((ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8").split())
    learning = chosen(results("learning"), seed="mean")
    tuned = [row for row in learning if re.fullmatch("TrainLoraNode, tuned, same (time|steps)", row["trainer"])]
    ours = {row["character"]: row for row in chosen(learning, trainer="LoRA Workbench")}
    alone = {row["character"]: row for row in chosen(learning, trainer="LoRA Workbench, no prior preservation")}

    def between(rows: list[dict[str, str]], column: str) -> str:
        found = [float(row[column]) for row in rows]
        return f"{min(found):.0f} to {max(found):.0f}"

    closer = max(float(row["likeness"]) - float(ours[row["character"]]["likeness"]) for row in tuned)
    assert f"by up to {closer:.2f}, but loses {between(tuned, 'lost')} of 100 unrelated prompts" in page
    assert f"turns {between(tuned, 'leaked')} of 100 other creatures" in page
    assert f"ours turns {between(list(ours.values()), 'leaked')}." in page
    assert f"we lose {float(alone['zorp']['lost']):.0f} and {float(alone['gub']['lost']):.0f} prompts" in page
    background = "shown_background_alone"
    assert f"{ours['gub'][background]}% of our pictures" in page and f"{alone['gub'][background]}% do" in page
    wordings = ("shown_as_trained", background, "shown_as_tags")
    assert f"at least {min(int(ours['zorp'][name]) for name in wordings)}% for every wording" in page
    (large,) = chosen(results("dataset"), loader="LoRA Workbench")
    assert f"{large['seconds']} s and {large['memory_mib']} MiB" in page
    gpu = {row["trainer"]: row for row in results("step") if "H100" in row["gpu"]}
    one, four = gpu["LoRA Workbench"], gpu["LoRA Workbench, batch of 4"]
    assert f"{one['time_of_host']} of TrainLoraNode's time and {one['memory_of_host']} of its memory" in page
    assert f"A batch of 4 cost {four['time_of_ours']} times a batch of 1" in page


def test_the_rows_of_defaults_are_of_what_the_benchmark_tries(bench: Any, results: Any) -> None:
    """Each setting has all its values, the template's own marked, with the template's steps."""
    rows = results("defaults")
    page = (ROOT / "docs" / "defaults.md").read_text(encoding="utf-8")
    (steps,) = re.findall(r"trains for (\d+) steps", page)
    assert {row["setting"] for row in rows} == set(bench.defaults.SETTINGS)
    for name, tried in bench.defaults.TRIED.items():
        means = chosen(rows, setting=name, seed="mean")
        assert [row["value"] for row in means] == list(tried), name
        own = [row for row in means if row["template"]]
        assert [row["value"] for row in own] == [
            label for label, settings in tried.items() if bench.defaults.is_the_demos(settings)
        ], name
        assert len(own) == 1 and own[0]["steps"] == steps, name
        assert all(int(row["seeds"]) > 0 for row in means), name
    for name, default in bench.defaults.DEFAULTS.items():
        assert default.other in bench.defaults.TRIED[name]


def test_a_setting_that_is_not_tried_says_so(bench: Any) -> None:
    with pytest.raises(SystemExit, match="'colour' is not a setting that is tried. Choose from learning_rate, rank"):
        next(bench.defaults.defaults_benchmark([0], 16, 32, ["rank", "colour"]))


def judged(bench: Any, likeness: float) -> tuple[Any, Any]:
    from lora_workbench.lab.judge.judge import Judgement

    values = dict.fromkeys(("shown", "ground", "worn", "kept", "lost", "spoiled", "drift", "leaked"), 0.5)
    return bench.learning.Trained({}, 240, 60.0), Judgement(likeness=likeness, worded=(1.0, likeness, 0.0), **values)


def test_rows_hold_each_seed_and_mean_least_and_most(bench: Any, results: Any, monkeypatch: Any) -> None:
    """In the columns of learning.csv, with the time as a ratio of ours."""
    found = {
        "LoRA Workbench": {700: judged(bench, 0.5), 701: judged(bench, 0.7)},
        "base model, no LoRA": {0: judged(bench, 0.0)},
    }
    monkeypatch.setattr(bench.learning, "compare", lambda *_: (found, 0.8649, 0.3))
    monkeypatch.setattr(bench.learning, "measured_on", lambda: {"comfyui": "1.2", "gpu": "", "machine": "a machine"})
    monkeypatch.setattr(bench.learning, "Unfinished", lambda _: SimpleNamespace(forget=lambda: None))
    (rows,) = bench.learning.learning_benchmark(["zorp"], [700, 701], 16, 32)
    by_seed = {row["seed"]: row for row in rows if row["trainer"] == "LoRA Workbench"}
    assert list(by_seed) == [700, 701, "mean", "least", "most"]
    assert [row["likeness"] for row in by_seed.values()] == [0.5, 0.7, 0.6, 0.5, 0.7]
    assert by_seed["mean"]["shown"] == 50 and by_seed["mean"]["shown_background_alone"] == 60
    assert by_seed[700]["time_of_ours"] == 1 and by_seed[700]["steps"] == 240
    assert {column for row in rows for column in row} == set(results("learning")[0])
    through_vae = next(row for row in rows if row["trainer"] == "drawn pictures through the VAE")
    assert through_vae["likeness"] == 0.865
    kept = json.loads(json.dumps(bench.learning.packed(*found["LoRA Workbench"][700])))
    assert bench.learning.unpacked(*kept) == found["LoRA Workbench"][700], "all of an unfinished run is kept"


def test_a_step_is_told_as_ratios_of_the_same_precision(results: Any) -> None:
    from lora_workbench.lab.bench.step_time import ratios

    times = {("floor", "fp32"): 2.0, ("ours", "fp32"): 2.5, ("host", "fp32"): 10.0, ("ours", "bf16"): 1.0}
    measured = {key: {"time": time, "growth": int(10 * time)} for key, time in times.items()}
    assert ratios(measured, ("host", "fp32")) == {
        "time_of_floor": 5, "time_of_host": 1, "time_of_ours": 4, "memory_of_host": 1, "memory_of_ours": 4,
    }  # fmt: skip
    assert ratios(measured, ("ours", "bf16")) == {"time_of_ours": 1, "memory_of_ours": 1}
    assert set(ratios(measured, ("ours", "fp32"))) < set(results("step")[0])


def test_a_step_is_paired_with_the_frozen_models(results: Any, monkeypatch: Any, capsys: Any) -> None:
    """The median ratio counts; a case that fails has no row and stops no other."""
    from lora_workbench.lab.bench import step_time

    class Process:
        failed = ""
        result = {"growth": 2**30}

        def __init__(self, _command: str, name: str, *_: object) -> None:
            self.name, self.taken = name, 0

        def ready(self) -> bool:
            return True

        def step(self) -> dict[str, float] | None:
            self.taken += 1
            if self.name == "host":
                self.failed = "out of memory"
                return None
            return {"seconds": 2.0 if self.name == "floor" else 2.0 + self.taken}

        def finish(self) -> None: ...

        stop = finish

    monkeypatch.setattr(step_time, "Alive", Process)
    monkeypatch.setattr(step_time, "measured_on", lambda: {"comfyui": "1", "gpu": "", "machine": "a machine"})
    monkeypatch.setattr(step_time, "host_version", lambda: "0.3.75")
    rows = {(row["trainer"], row["precision"]): row for row in step_time.step_benchmark(3, ["ours", "host"])}
    assert len(rows) == 4 and not any(trainer.startswith("TrainLoraNode") for trainer, _ in rows)
    row = rows["LoRA Workbench", "fp32"]
    assert (row["pairs"], row["least"], row["time_of_floor"], row["most"]) == (3, 2.0, 2.5, 3.0), "the first warms up"
    assert row["memory_of_ours"] == 1 and set(row) <= set(results("step")[0])
    assert rows["frozen model, no trainer", "fp32"]["time_of_floor"] == 1
    assert "out of memory" in capsys.readouterr().out


@pytest.mark.parametrize("slower_at_first", [1.0, 1.3])
def test_the_hosts_trainer_gets_all_the_time(slower_at_first: float, bench: Any) -> None:
    """Also where its pace was taken in a slow moment; what each run costs besides is counted."""

    class Paced(bench.learning.Bench):
        def __init__(self) -> None:
            self.runs: list[int] = []

        def native(self, seed: int, steps: int, **_: Any) -> Any:
            self.runs.append(steps)
            pace = 0.1 * (slower_at_first if len(self.runs) < 4 else 1.0)
            return bench.learning.Trained({}, steps, 5 + pace * steps)

    trained = Paced().native_within(7, 65.0, rank=8)
    assert 580 <= trained.steps <= 610 and trained.seconds >= 0.98 * 65


def test_a_table_replaces_its_own_and_nothing_else(tmp_path: Path) -> None:
    from lora_workbench.lab.bench.results import write_table

    page = tmp_path / "page.md"
    page.write_text("# Ünits\n\n<!-- a -->\nold\n<!-- end a -->\n\nafter\n", encoding="utf-8")
    write_table(page, "a", "new ×")
    assert page.read_text(encoding="utf-8") == "# Ünits\n\n<!-- a -->\nnew ×\n<!-- end a -->\n\nafter\n"
    with pytest.raises(ValueError, match="lacks the comments <!-- b -->"):
        write_table(page, "b", "more")
    assert [file.name for file in tmp_path.iterdir()] == ["page.md"]


def test_stored_rows_replace_those_of_the_same_host(tmp_path: Path) -> None:
    from lora_workbench.lab.bench.results import Column, read, store, table

    (tmp_path / "step.csv").write_text("comfyui,gpu,trainer,time\n1,,ours,1.25\n1,,theirs,3\n1,H100,ours,2\n")
    store("step", [{"comfyui": "1", "gpu": "", "trainer": "ours", "time": 1.5}], ("comfyui", "gpu"), tmp_path)
    rows = read("step", tmp_path)
    assert [(row["gpu"], row["trainer"], row["time"]) for row in rows] == [("H100", "ours", "2"), ("", "ours", "1.5")]
    with pytest.raises(ValueError, match="colour"):
        store("step", [{"comfyui": "1", "gpu": "", "colour": 2}], ("comfyui", "gpu"), tmp_path)
    assert read("step", tmp_path) == rows and len(list(tmp_path.iterdir())) == 1
    columns = {"CPU": Column({"gpu": ""}, "time", 2), "H100": Column({"gpu": "H100"}, "time", 0)}
    assert table(rows, "trainer", columns) == "| trainer | CPU | H100 |\n| --- | --- | --- |\n| ours | 1.50 | 2 |"


def test_a_process_ends_with_its_time_and_with_what_it_started(tmp_path: Path) -> None:
    from lora_workbench.lab.bench.gpu import result_of, told_by_tests, within

    late = tmp_path / "late"
    child = f"import time, pathlib; time.sleep(3); pathlib.Path({str(late)!r}).touch()"
    script = f"import subprocess, sys; print('a PASSED', flush=True); subprocess.run([sys.executable, '-c', {child!r}])"
    started = time.monotonic()
    found = within([sys.executable, "-c", script], 1)
    assert time.monotonic() - started < 2.5
    assert result_of(found, 1) == {"failed": "it took more than 1 s"}
    assert told_by_tests(found) == "1 passed before its time was over"
    time.sleep(max(0, started + 4 - time.monotonic()))
    assert not late.exists()
    wrong = "import sys; sys.stderr.write('MemoryError: out of memory\\na bar\\n'); sys.exit(1)"
    assert result_of(within([sys.executable, "-c", wrong], 9), 9) == {"failed": "MemoryError: out of memory"}
    assert result_of(within([sys.executable, "-c", "print('RESULT {\"seconds\": 2}')"], 9), 9) == {"seconds": 2}
