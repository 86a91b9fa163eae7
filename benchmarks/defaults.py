"""What each setting is worth: one is changed at a time, on the concept that is there to be tuned on.

    python dev.py bench defaults [--seeds N] [--only SETTING ...] [--write]
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from learning import (
    AS_IT_COMES,
    LEARNED,
    Bench,
    about_runs,
    demo_prior,
    demo_settings,
    pace,
    say,
    table,
)
from machine import describe_machine

CONCEPT = "zorp"
# Values tried beside the demo's own.
TRIED: dict[str, tuple[Any, ...]] = {
    "learning_rate": (1e-4, 5e-4, 2e-3, 4e-3),
    "rank": (4, 16, 32),
    "alpha": (0.0, 1.0),
    "lora_plus": (1.0, 4.0, 16.0),
    "timesteps": ("logit-normal", "uniform"),
    "epochs": (2, 4, 8),
    "batch_size": (3, 6, 12),
    "scheduler": ("cosine", "constant", "rex"),
    "dropout": (0.0, 0.1),
}
# How what the model knows is kept: see `Bench.ours`.
PRIOR = "prior"
PRIORS: dict[str, dict[str, Any]] = {
    "nothing is kept": {"share": 0},
    "pictures of what it knows, as they are, weight 1": {"target": "picture", "weight": 1.0},
    "such pictures, as the model paints them, weight 1": {"target": "model", "weight": 1.0},
    "such pictures, as the model paints them, weight 5": {"target": "model", "weight": 5.0},
    "no further pictures (Prior Preservation), weight 5": {"own": True, "weight": 5.0},
}
# Rate, rank and pictures a step of ComfyUI's own trainer, so that it is compared at its best: with as many steps as
# ours where it sees as many pictures in each, in as much time where it sees one.
NATIVE = "TrainLoraNode"
NATIVE_TRIED = (
    (5e-4, 8, LEARNED), (2e-3, 16, LEARNED), (2e-3, 32, LEARNED), (8e-3, 16, LEARNED), (1e-3, 16, 1), (2e-3, 16, 1),
    (4e-3, 16, 1), (2e-3, 32, 1),
)  # fmt: skip


def defaults_benchmark(seeds: Sequence[int], count: int, only: Sequence[str] = ()) -> Iterator[tuple[str, str]]:
    """Train and judge every value of every setting; yields (setting, table)."""
    start = demo_settings()
    told = ", ".join(f"{name} {start[name]}" for name in TRIED)
    about = f"{about_runs(seeds, count)} {describe_machine()} Unless said: {told}."
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(CONCEPT, Path(folder), count)
        bench.ours(0, steps=2)  # warms up, and fills the caches
        reference = [bench.run(bench.ours, seed) for seed in seeds]
        for name, values in TRIED.items():
            if only and name not in only:
                continue
            rows = []
            for value in values:
                same = value == start[name] or (name, value) == ("timesteps", "logit-normal")  # which auto is here
                judged = reference if same else [bench.run(bench.ours, seed, **{name: value}) for seed in seeds]
                rows.append((f"**{value}**" if same else str(value), judged))
                say(f"{name} {value}: {[judgement for _, judgement in judged]}")
            yield name, "\n".join([about, "", *table(name.replace("_", " "), rows)])
        if not only or PRIOR in only:
            rows = []
            for name, prior in PRIORS.items():
                same = prior == {key: value for key, value in demo_prior().items() if key in prior}
                alone = {"batch_size": LEARNED} if prior.get("share") == 0 else {}
                judged = reference if same else [
                    bench.run(bench.ours, seed, prior=prior, steps=reference[0][0].steps, **alone) for seed in seeds
                ]  # fmt: skip
                rows.append((f"**{name}**" if same else name, judged))
                say(f"{name}: {[judgement for _, judgement in judged]}")
            yield PRIOR, "\n".join([about, "", *table("what is kept", rows)])
        if not only or NATIVE in only:
            rows = []
            ours = reference[0][0]
            per_step, fixed = pace(bench)
            for rate, rank, together in NATIVE_TRIED:
                settings = {**AS_IT_COMES, "learning_rate": rate, "rank": rank, "grad_accumulation_steps": together}
                steps = ours.steps if together == LEARNED else max(1, round((ours.seconds - fixed) / per_step))
                judged = [bench.run(bench.native, seed, steps, **settings) for seed in seeds]
                rows.append((f"rate {rate:g}, rank {rank}, {together} a step", judged))
                say(f"{NATIVE} {rate:g} {rank} {together}: {[judgement for _, judgement in judged]}")
            yield NATIVE, "\n".join([about, "", *table(NATIVE, rows)])
