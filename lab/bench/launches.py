"""What a step costs besides arithmetic: calls, host syncs, the time Python takes, activations that are kept.

Calls and syncs are counted through `prepared` and `train`, which a run of the node goes through too, on SD1.5's
topology with 32 channels: the count does not depend on the width. As a script: one timed case that takes steps in turn.

    python lab launches CASE --steps N
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from typing import NamedTuple

from .cases import Job, cast_once, floor, load_random, ours
from .host import start_host
from .machine import measured_on
from .results import Row
from .turns import Alive, Served, in_turn, tell

NARROW = Job("sd15-narrow", 64, "fp32", steps=6)


class Goal(NamedTuple):
    """What a quantity should not exceed.

    Attributes:
        quantity: Its name in the table.
        most: The goal; None without one.
    """

    quantity: str
    most: float | None = None


CALLS = {
    ("fp32", False): Goal("calls, fp32"),
    ("fp32", True): Goal("calls, fp32, gradient checkpointing"),
    ("bf16", False): Goal("calls, bf16", 2600),
    ("bf16", True): Goal("calls, bf16, gradient checkpointing", 4000),
}
SYNCS = Goal("host syncs, bf16", 1)
PASSES = {"ours": Goal("time of passes", 1.3), "ours-checkpointing": Goal("time of passes, gradient checkpointing", 2)}
WHOLE = {"ours": Goal("time of a step"), "ours-checkpointing": Goal("time of a step, gradient checkpointing")}
SAVED = Goal("saved activations, GiB", 6.1)


def launches_benchmark(pairs: int, model: str = NARROW.model) -> list[Row]:
    """Count, time and add up.

    Args:
        pairs: Steps of each timed case.
        model: The model on which calls are counted; `sd15` is the full size.
    """
    found = [*counts(replace(NARROW, model=model)), *times(pairs), saved()]
    return [{**measured_on(), **row} for row in found]


def row_of(goal: Goal, frozen: float | str, ours_: float) -> Row:
    """One row of the table: a quantity of the frozen model and of ours, and the goal."""
    return {"quantity": goal.quantity, "frozen": frozen, "ours": ours_, "goal": "" if goal.most is None else goal.most}


def counts(job: Job) -> list[Row]:
    """Calls of a step, and how often the processor waits in it. The frozen model computes in one dtype."""
    from .counting import count_a_step

    rows, waits = [], {}
    frozen = {precision: count_a_step(floor, lambda p=precision: frozen_model(job.model, p), job) for precision in
              ("fp32", "bf16")}  # fmt: skip
    for (precision, checkpointing), goal in CALLS.items():
        found = count_step_of_ours(replace(job, precision=precision, checkpointing=checkpointing))
        rows.append(row_of(goal, frozen[precision]["calls"], found["calls"]))
        waits[precision, checkpointing] = found["syncs"]
    return [*rows, row_of(SYNCS, frozen["bf16"]["syncs"], waits["bf16", False])]


def count_step_of_ours(job: Job) -> dict[str, float]:
    """Count the calls and syncs of one step of our training."""
    import torch

    from .counting import count_a_step

    return count_a_step(ours, lambda: load_random(job.model, torch.float32, trainer=True), job)


def frozen_model(name: str, precision: str) -> object:
    """The frozen model in one dtype."""
    import torch

    patcher = load_random(name, torch.float32, trainer=False)
    return cast_once(patcher, torch.bfloat16) if precision == "bf16" else patcher


def times(pairs: int) -> list[Row]:
    """Time on one thread and a model so narrow that Python decides it, as median ratios to the frozen model's."""
    warming = 3
    names = ["floor", *PASSES]
    alive = []
    for name in names:
        alive.append(Alive("launches", name, "--steps", pairs + warming, OMP_NUM_THREADS="1"))
        alive[-1].ready()
    rounds = in_turn(alive, pairs + warming)[warming:]
    if not rounds:
        print("  failed: " + "; ".join(filter(None, (one.failed for one in alive))), flush=True)
        return []
    rows = []
    for goals, what in ((PASSES, "passes"), (WHOLE, "seconds")):
        for place, name in enumerate(names[1:], 1):
            ratio = statistics.median(measured[place][what] / measured[0][what] for measured in rounds)
            rows.append(row_of(goals[name], 1, round(ratio, 3)))
    return rows


def saved() -> Row:
    """Activations that SDXL at 1024 px keeps for backward."""
    from .counting import saved_activations

    return row_of(SAVED, "", round(saved_activations(Job("sdxl", 1024, "bf16", 1)) / 2**30, 2))


def main() -> None:
    """Run one timed case."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=["floor", *PASSES])
    parser.add_argument("--steps", type=int, default=40)
    args = parser.parse_args()
    start_host()
    torch.set_num_threads(1)
    job = replace(NARROW, steps=args.steps, checkpointing=args.case == "ours-checkpointing")
    patcher = load_random(job.model, torch.float32, trainer=args.case != "floor")
    (floor if args.case == "floor" else ours)(patcher, job, Served(patcher.model))
    tell("RESULT", {"case": args.case})
