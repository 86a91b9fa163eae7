"""What the benchmarks compare and write, without measuring anything."""

from __future__ import annotations

import json
import re
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


@pytest.mark.parametrize("how", ["native_by_time", "native_by_steps"])
def test_the_hosts_trainer_is_given_what_is_best_for_it(how: str, bench: Any) -> None:
    """Of those as close as the closest in docs/defaults.md the one that loses least, at no edge of what was tried."""
    given = {"native_by_time": bench.learning.BEST_BY_TIME, "native_by_steps": bench.learning.BEST_BY_STEPS}[how]
    page = (ROOT / "docs" / "defaults.md").read_text(encoding="utf-8")
    heads, _, *rows = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in page.split(f"<!-- {how} -->")[1].split("<!-- end")[0].splitlines() if line.startswith("|")
    )  # fmt: skip
    fidelity, lost = heads.index("fidelity"), heads.index("lost without the trigger, points")
    found = {tuple(float(part) for part in row[0].split(", ")): row for row in rows}
    assert set(found) == set(bench.defaults.NATIVE[how]), "the table is of what is tried"
    best = (given["learning_rate"], given["rank"])
    closest = max(float(row[fidelity]) for row in rows)
    level = [pair for pair, row in found.items() if float(row[fidelity]) > closest - 0.025]  # less than a seed is worth
    assert best == min(level, key=lambda pair: float(found[pair][lost]))
    for tried, chosen in zip(zip(*bench.defaults.NATIVE[how], strict=True), best, strict=True):
        assert min(tried) < chosen < max(tried)


@pytest.mark.parametrize("concept", ["zorp", "gub"])
def test_the_page_tells_of_a_trainer_ahead_of_the_hosts_as_it_comes(concept: str) -> None:
    """In fidelity on every seed; in the mean of them less than five points are lost or spoiled."""
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    table = page.split(f"<!-- learning {concept} 0.3.75 -->")[1].split("<!-- end")[0]
    seeds = int(re.search(r"^(\d+) seeds", table, re.M)[1])
    assert seeds >= 3
    for how in ("as much time", "as many steps"):
        assert f"TrainLoraNode as it comes, {how}: on {seeds} of {seeds} seeds" in table
    heads, ours = (
        [cell.strip() for cell in re.search(rf"^\| {name} \|.*$", table, re.M)[0].split("|")]
        for name in (concept, "LoRA Workbench")
    )
    for of in ("lost without the trigger, points", "spoiled, points"):
        assert float(ours[heads.index(of)].split(" ")[0]) < 5, of


def test_the_page_of_defaults_tells_of_what_the_benchmark_tries(bench: Any) -> None:
    """Each table has the rows of its setting, the template's own in bold, with the template's steps."""
    page = (ROOT / "docs" / "defaults.md").read_text(encoding="utf-8")
    of_the_page = re.search(r"or (\d+) steps at 3e-3", page)[1]
    for name, tried in bench.defaults.TRIED.items():
        table = page.split(f"<!-- {name} -->")[1].split(f"<!-- end {name} -->")[0]
        assert re.search(r"^\d+ seeds?[,:]", table, re.M), name
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")]
        assert [row[0].strip("*") for row in rows[2:]] == list(tried), name
        own = [row for row in rows[2:] if row[0].startswith("**")]
        assert [row[0].strip("*") for row in own] == [
            label for label, settings in tried.items() if bench.defaults.is_the_demos(settings)
        ], name
        assert len(own) == 1 and own[0][rows[0].index("steps")] == of_the_page, name


def test_a_setting_that_is_not_tried_says_so(bench: Any) -> None:
    with pytest.raises(SystemExit, match="no setting 'colour': learning_rate, rank"):
        next(bench.defaults.defaults_benchmark([0], 16, 32, ["rank", "colour"]))


def judged(bench: Any, fidelity: float) -> tuple[Any, Any]:
    from lora_workbench.lab.judge.judge import Judgement

    values = dict.fromkeys(("shown", "ground", "worn", "kept", "lost", "spoiled", "drift", "leaked"), 0.5)
    return bench.learning.Trained({}, 240, 60.0), Judgement(fidelity=fidelity, worded=(1.0, fidelity, 0.0), **values)


def test_a_table_tells_mean_and_range_and_who_is_ahead(bench: Any) -> None:
    rows = [
        ("LoRA Workbench", [judged(bench, 0.5), judged(bench, 0.7)]),
        ("TrainLoraNode as it comes", [judged(bench, 0.4), judged(bench, 0.8)]),
        ("the base, without a LoRA", [judged(bench, 0.0)]),
    ]
    head, _, ours, *_ = bench.learning.table("zorp", rows, 120.0)
    assert head.startswith("| zorp | steps | time, of ours | fidelity |")
    assert ours.startswith("| LoRA Workbench | 240 | 0.50 × | 0.60 (0.50 to 0.70) | 50 (50 to 50) |")
    assert len({line.count("|") for line in bench.learning.table("zorp", rows)}) == 1
    assert bench.learning.ahead(rows) == (
        "Fidelity, seed by seed 0.500, 0.700, is ahead of TrainLoraNode as it comes: on 1 of 2 seeds (0.400, 0.800)."
    )
    assert bench.learning.by_wording(rows[:2]) == (
        "Pictures that show it, for prompts worded as in training, with the background alone, as tags: "
        "LoRA Workbench: 100%, 60%, 0%; TrainLoraNode as it comes: 100%, 60%, 0%."
    )
    told = json.loads(json.dumps(bench.learning.told(*rows[0][1][0])))
    assert bench.learning.untold(*told) == rows[0][1][0], "what is kept of an unfinished run is all of it"


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


def test_a_table_replaces_its_own_and_nothing_else(bench: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Ünits\n\n<!-- a -->\nold\n<!-- end a -->\n\nafter\n", encoding="utf-8")
    bench.run.write_table(page, "a", "new ×")
    assert page.read_text(encoding="utf-8") == "# Ünits\n\n<!-- a -->\nnew ×\n<!-- end a -->\n\nafter\n"
    bench.run.write_table(page, "b", "more")
    assert page.read_text(encoding="utf-8").endswith("after\n\n## b\n\n<!-- b -->\nmore\n<!-- end b -->\n")
    assert [file.name for file in tmp_path.iterdir()] == ["page.md"]
