"""Memory and time of each rung of the memory ladder. As a script: one rung in a process of its own.

    python lab rungs NUMBER [--model sdxl] [--side PIXELS] [--steps N]

The model has random fp16 weights and computes in bf16; rank 16, AdamW, two pictures a step.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable
from typing import Any

from .cases import Job, load_random, our_inputs
from .host import start_host
from .machine import measured_on
from .memory import PeakMemory
from .results import Column, Row, table
from .turns import now, tell

BATCH, STEPS, SIDE, GIB = 2, 2, 512, 2**30


def ladder(batch: int) -> list[Any]:
    """Every rung of a card with memory of its own, the fastest first."""
    from lora_workbench.training.config import TrainConfig
    from lora_workbench.training.ladder import rungs

    return rungs(TrainConfig(batch_size=batch), has_copies=True, is_apart=True, can_stream=True, has_eight_bit=True)


def rungs_benchmark(model: str = "sdxl", side: int = SIDE) -> list[Row]:
    """Growth of the memory and time of a step on each rung, relative to the first."""
    from .run import measure

    rows: list[Row] = []
    first: dict[str, float] | None = None
    for number, rung in enumerate(ladder(BATCH)):
        print(f"measuring: {rung.name} …", flush=True)
        found = measure("rungs", number, "--model", model, "--side", side)
        if found is None:
            continue
        first = first or found
        rows.append({
            **measured_on(), "rung": rung.name.rpartition(", ")[2], "side": side,
            "time_of_plain": round(found["seconds"] / first["seconds"], 2),
            "activations_of_plain": round(found["activations"] / first["activations"], 2),
            "growth_gib": round(found["growth"] / GIB, 2), "estimate_gib": round(found["estimate"] / GIB, 2),
            "estimate_of_growth": round(found["estimate"] / found["growth"], 2),
        })  # fmt: skip
    return rows


def rungs_table(rows: Iterable[Row]) -> str:
    """Time and memory of each rung as Markdown."""
    columns = {
        "time": Column({}, "time_of_plain", 2), "activations": Column({}, "activations_of_plain", 2),
        "memory growth, GiB": Column({}, "growth_gib", 2), "estimate, GiB": Column({}, "estimate_gib", 2),
    }  # fmt: skip
    return table(rows, "rung", columns)


def run_case(number: int, job: Job) -> dict[str, float]:
    """Train a few steps on one rung."""
    import bitsandbytes.optim  # noqa: F401 - its own memory must not count as growth
    import torch
    from lora_workbench.training.events import SilentSink
    from lora_workbench.training.host.model import HostModel
    from lora_workbench.training.loop import train
    from lora_workbench.training.preflight import prepared

    rung = ladder(job.batch)[number]
    model = HostModel(load_random(job.model, torch.float16, trainer=True))
    plan, *stores = our_inputs(job)
    marks = []
    with PeakMemory() as memory, prepared(model, plan, *stores, only=rung) as ready:
        marks.append(now())
        train(ready.setup, ready.run, SilentSink(), lambda *_: marks.append(now()))
    need = ready.fit.need(rung)  # with the model given back
    each = [after - before for before, after in zip(marks, marks[1:], strict=False)]
    return {
        "seconds": statistics.median(each), "growth": memory.growth, "estimate": need.besides,
        "activations": memory.growth - need.copies - need.lora,
    }  # fmt: skip


def main() -> None:
    """Run one rung."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("number", type=int)
    parser.add_argument("--model", default="sdxl")
    parser.add_argument("--side", type=int, default=SIDE)
    parser.add_argument("--steps", type=int, default=STEPS)
    args = parser.parse_args()
    start_host()
    job = Job(args.model, args.side, "bf16", args.steps, BATCH)
    tell("RESULT", run_case(args.number, job))

