"""What each default is worth: one setting is changed at a time, on the concept that is there to be tuned on.

    python dev.py bench defaults [--seeds N] [--only SETTING ...] [--write]
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from learning import OURS, Bench, describe_machine, say, table

CONCEPT = "zorp"
# The first value of each is what the others are held against: the demo's settings.
TRIED: dict[str, tuple[Any, ...]] = {
    "learning_rate": (2e-3, 5e-4, 1e-3, 4e-3),
    "rank": (16, 4, 8, 32),
    "alpha": (0.0, 8.0, 1.0),
    "timesteps": ("logit-normal", "uniform"),
    "epochs": (8, 4, 16),
    "batch_size": (4, 1, 2),
    "scheduler": ("cosine", "constant", "rex"),
    "dropout": (0.0, 0.1),
}


def defaults_benchmark(seeds: Sequence[int], only: Sequence[str] = ()) -> str:
    """Train and judge every value of every setting; returns a table for each setting."""
    start = {name: values[0] for name, values in TRIED.items()} | OURS
    lines = [
        f"Concept {CONCEPT}, mean over {len(seeds)} seeds and, in brackets, least to most. {describe_machine()} "
        "Unless said: " + ", ".join(f"{name} {value}" for name, value in start.items()) + "."
    ]
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(CONCEPT, Path(folder))
        bench.ours(0, steps=2)  # warms up, and fills the caches
        reference = [bench.run(bench.ours, seed, **start) for seed in seeds]
        for name, values in TRIED.items():
            if only and name not in only:
                continue
            rows = [(f"**{values[0]}**", reference)]
            for value in values[1:]:
                rows.append((str(value), [bench.run(bench.ours, seed, **{**start, name: value}) for seed in seeds]))
                say(f"{name} {value}: {[judgement for _, judgement in rows[-1][1]]}")
            lines += ["", *table(name.replace("_", " "), rows)]
    return "\n".join(lines)
