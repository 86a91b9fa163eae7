"""Time and memory of a training step. As a script: one case in a process of its own that takes steps in turn.

    python lab step_time CASE FILE --steps N [--precision fp32|bf16] [--side PIXELS]

Rank 16, AdamW, no gradient checkpointing except in its own case, 256 px by default. FILE is the SD1.5 UNet, which is
written if it is missing. With a GPU, the case runs on it and memory is the GPU's.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ..pack import ROOT
from . import text_cases
from .cases import Job, cast_once, floor, host, host_bypass, load_file, ours
from .host import start_host
from .machine import gpu_name, host_version, measured_on
from .memory import PeakMemory
from .results import Row
from .turns import Alive, Served, in_turn, tell


class Case(NamedTuple):
    """A line of the table.

    Attributes:
        name: As the script takes it.
        precision: What the model computes in.
        trainer: Its name in the table.
        share: Its part of the pairs; 1 for cases that lie close to the frozen model.
        floor: The case that each of its steps is next to.
    """

    name: str
    precision: str
    trainer: str
    share: float = 1.0
    floor: str = "floor"


FLOOR, ONE_DTYPE, WITH_TEXT = "floor", "floor-one-dtype", "floor-text"
FLOORS = (FLOOR, WITH_TEXT)
CASES = (
    Case(FLOOR, "fp32", "frozen model, no trainer"),
    Case("ours", "fp32", "LoRA Workbench"),
    Case("host", "fp32", "TrainLoraNode", 0.3),
    Case("host-bypass", "fp32", "TrainLoraNode, bypass mode", 0.3),
    Case("ours-batch4", "fp32", "LoRA Workbench, batch of 4", 0.5),
    Case("ours-checkpointing", "fp32", "LoRA Workbench, gradient checkpointing", 0.5),
    Case(FLOOR, "bf16", "frozen model, no trainer, bf16"),
    Case(ONE_DTYPE, "bf16", "frozen model, no trainer, bf16 weights"),
    Case("ours", "bf16", "LoRA Workbench, bf16"),
    Case("ours-no-copies", "bf16", "LoRA Workbench, bf16, no copies of the weights"),
    Case("host", "bf16", "TrainLoraNode, bf16", 0.3),
    Case(WITH_TEXT, "fp32", "frozen model and text encoder, no trainer"),
    Case("ours-text", "fp32", "LoRA Workbench, text encoder trained", floor=WITH_TEXT),
)
# The ratios of a row: the column, the quantity, the case of the same precision that it is a ratio of.
RATIOS = (
    ("time_of_floor", "time", FLOOR), ("time_of_one_dtype", "time", ONE_DTYPE), ("time_of_host", "time", "host"),
    ("time_of_ours", "time", "ours"), ("memory_of_host", "growth", "host"), ("memory_of_ours", "growth", "ours"),
)  # fmt: skip


def step_benchmark(pairs: int, only: list[str] = ()) -> list[Row]:  # type: ignore[assignment]
    """Step time and memory growth of one SD1.5 training step; a case that failed has no row.

    Args:
        pairs: Steps of a case, each next to a step of the frozen model in the same precision.
        only: Names of cases, where not all are wanted.
    """
    side = 512 if gpu_name() else 256
    cases = [case for case in CASES if not only or case.name in only or case.name in _floors(only)]
    if host_version() == "0.3.75":  # bypass mode is newer
        cases = [case for case in cases if case.name != "host-bypass"]
    found: dict[tuple[str, str], dict] = {}
    for case in cases:
        print(f"measuring: {case.trainer} …", flush=True)
        measured = measure_pairs(case, max(2, round(pairs * case.share)), side)
        if measured:
            found[case.name, case.precision] = measured
            print(f"  {measured['time']:.2f} of the frozen model's time, memory +{measured['growth'] / 2**30:.2f} GiB")
    about = {**measured_on(), "side": side}
    rows: list[Row] = []
    for case in cases:
        if (key := (case.name, case.precision)) in found:
            spread = {name: found[key][name] for name in ("pairs", "least", "most")}
            # Its own floor is the only one that does the same work.
            compared = {"time_of_floor": round(found[key]["time"], 3)} if WITH_TEXT in case else ratios(found, key)
            rows.append({**about, "trainer": case.trainer, "precision": case.precision, **spread, **compared})
    return rows


def _floors(only: list[str]) -> set[str]:
    """The floors of some cases."""
    return {case.floor for case in CASES if case.name in only}


def measure_pairs(case: Case, pairs: int, side: int) -> dict[str, Any] | None:
    """The time of a case as the median ratio of its pairs, and the growth of its memory.

    A floor has nothing to be paired with: its time is 1.
    """
    file = ROOT / ".host" / "bench" / "sd15_full.safetensors"
    names = [case.name] if case.name in FLOORS else [case.floor, case.name]
    steps = 2 if case.name in FLOORS else pairs + 1  # the first warms up
    told = ("--steps", steps, "--precision", case.precision, "--side", side)
    alive = []
    for name in names:  # one after the other: loading takes twice the memory
        alive.append(Alive("step_time", name, file, *told))
        alive[-1].ready()
    rounds = in_turn(alive, steps)[1:]
    if not rounds:
        print(f"  failed: {'; '.join(filter(None, (one.failed for one in alive)))}", flush=True)
        return None
    each = [measured[-1]["seconds"] / measured[0]["seconds"] for measured in rounds]
    return {**summary(each), "growth": alive[-1].result["growth"]}


def summary(each: list[float]) -> dict[str, float]:
    """Median, least and most of the ratios of pairs."""
    return {
        "time": statistics.median(each), "pairs": len(each), "least": round(min(each), 3), "most": round(max(each), 3)
    }  # fmt: skip


def ratios(results: dict[tuple[str, str], dict], key: tuple[str, str]) -> dict[str, float]:
    """Time and memory of one case as ratios of the cases it is compared with, in the same precision."""
    found = {}
    for name, quantity, other in RATIOS:
        if (other, key[1]) in results:
            found[name] = round(results[key][quantity] / results[other, key[1]][quantity], 3)
    return found


def run_case(name: str, file: Path, job: Job) -> int:
    """Run one case in this process, in turn; return the growth of its memory in bytes."""
    import torch

    runs = {
        "host": host, "host-bypass": host_bypass, FLOOR: floor, ONE_DTYPE: floor,
        WITH_TEXT: text_cases.floor, "ours-text": text_cases.ours,
    }  # fmt: skip
    patcher = load_file(file, trainer=name not in (ONE_DTYPE, *FLOORS))
    if name == ONE_DTYPE:
        cast_once(patcher, torch.bfloat16)
    changed = {
        "ours-batch4": {"batch": 4}, "ours-checkpointing": {"checkpointing": True}, "ours-no-copies": {"copies": False}
    }  # fmt: skip
    with PeakMemory() as memory:
        runs.get(name, ours)(patcher, replace(job, **changed.get(name, {})), Served())
    return memory.growth


def main() -> None:
    """Run one case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=sorted({case.name for case in CASES}))
    parser.add_argument("file", type=Path)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--side", type=int, default=256)
    args = parser.parse_args()
    start_host()
    growth = run_case(args.case, args.file, Job("sd15", args.side, args.precision, args.steps))
    tell("RESULT", {"growth": growth})
