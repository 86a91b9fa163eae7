"""What each setting is worth: one is changed at a time, on the concept that is there to be tuned on.

    python dev.py bench defaults [--seeds N] [--only SETTING ...] [--write]

One that was stopped goes on when it is run again (`unfinished.py`).
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from .learning import (
    BY_STEPS,
    FASTER,
    LEARNED,
    Bench,
    Trained,
    about_runs,
    demo_regularization,
    demo_settings,
    say,
    table,
    told,
    untold,
)
from .machine import describe_machine
from .unfinished import Unfinished

CONCEPT = "zorp"
Settings = dict[str, Any]


def each(name: str, *values: Any) -> dict[str, Settings]:
    """One row for each value of a setting."""
    return {str(value): {name: value} for value in values}


def optimizer(name: str, rate: float, **more: Any) -> dict[str, Settings]:
    """A row for an optimizer, each of which has a rate of its own."""
    return {f"{name}, {rate:g}": {"optimizer": name, "learning_rate": rate, **more}}


def node_settings(**changed: Any) -> Settings:
    """The trainer's settings as the node has them, but for the run's name and seed."""
    from lora_workbench.training.config import TrainConfig

    own = {field.name: field.default for field in dataclasses.fields(TrainConfig) if field.name not in ("name", "seed")}
    return {**own, **changed}


# What is tried beside the demo's own: for each table its rows, and in what they differ.
TRIED: dict[str, dict[str, Settings]] = {
    "learning_rate": each("learning_rate", 1e-3, 2e-3, 3e-3, 4e-3),
    "rank": {**each("rank", 4, 16, 32), "64, rate 0.0015": {"rank": 64, "learning_rate": 1.5e-3}},
    "alpha": {"8": {"alpha": 8.0}, "the rank": {"alpha": 0}, "32": {"alpha": 32.0}},
    "lora_plus": each("lora_plus", 1, 2, 4, 8),
    "warmup_steps": each("warmup_steps", 0, 9),
    "timesteps": {"logit-normal": {"timesteps": "auto"}, "uniform": {"timesteps": "uniform"}},
    "epochs": each("epochs", 2, 3, 6),
    "batch_size": each("batch_size", 4, 8, 16),
    "scheduler": each("scheduler", "cosine", "constant_with_warmup", "linear", "rex"),
    "optimizer": {
        **optimizer("AdamW", 3e-3), **optimizer("Adafactor", 3e-3), **optimizer("Lion", 1e-3),
        **optimizer("ScheduleFreeAdamW", 6e-3), **optimizer("Prodigy", 1.0, lora_plus=1),
    },
    "dropout": each("dropout", 0, 0.1),
    # How what the model knows is kept: see `Bench.ours`.
    "prior": {
        "nothing": {"prior": {"share": 0}, "batch_size": LEARNED},
        "as they are, one to each learned, weight 1": {"prior": {"preserves_prior": False, "weight": 1.0}},
        "one to each learned, weight 2.5": {"prior": {"weight": 2.5}},
        "one to each learned, weight 5": {"prior": {"weight": 5.0}},
        "one to each learned, weight 8": {"prior": {"weight": 8.0}},
        "one to two learned, weight 5": {"prior": {"share": 0.5}, "batch_size": 6},
        "no further pictures (Prior Preservation), weight 5": {"prior": {"own": True, "weight": 5.0}},
    },
    # The trainer as it comes, in the template's graph, with its pictures to keep; its settings are for models of a
    # hundred times this size.
    "node": {
        "the template's": {}, "the node's": node_settings(), "the node's, rate 1e-3": node_settings(learning_rate=1e-3),
    },
}  # fmt: skip
# Rate and rank of ComfyUI's own trainer, so that it is compared at its best: with as many steps as ours and as many
# pictures in each, and in as much time with one picture in each.
NATIVE = {
    "native_by_steps": (
        (5e-4, 8), (1e-3, 16), (2e-3, 16), (2e-3, 64), (4e-3, 16), (4e-3, 32), (4e-3, 64), (4e-3, 128), (8e-3, 16),
    ),
    "native_by_time": ((5e-4, 8), (1e-3, 8), (1e-3, 16), (2e-3, 4), (2e-3, 8), (2e-3, 16), (4e-3, 16)),
}  # fmt: skip
SETTINGS = (*TRIED, *NATIVE)


def is_the_demos(settings: Settings) -> bool:
    """Whether a row is the demo itself."""
    own, prior = demo_settings(), {**demo_regularization(), "own": False}
    same_prior = all(prior[name] == value for name, value in settings.get("prior", {}).items())
    return same_prior and all(own[name] == value for name, value in settings.items() if name != "prior")


def defaults_benchmark(
    seeds: Sequence[int], count: int, scenes: int, only: Sequence[str] = ()
) -> Iterator[tuple[str, str]]:
    """Train and judge every value of every setting; yields (setting, table).

    Raises:
        SystemExit: One of `only` is no setting that is tried.
    """
    for name in only:
        if name not in SETTINGS:
            raise SystemExit(f"There is no setting {name!r}: {', '.join(SETTINGS)}.")
    about = f"{about_runs(seeds, count, scenes)} {describe_machine()}"
    so_far = Unfinished(f"defaults {count} {scenes} {sorted(only)}")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        bench = Bench(CONCEPT, Path(folder), count, scenes=scenes)
        bench.ours(0, steps=2)  # warms up, and fills the caches

        def run(label: str, train: Callable[..., Trained], *args: Any, **settings: Any) -> list[tuple[Trained, Any]]:
            def measure(seed: int) -> tuple[int, float, dict[str, float]]:
                return told(*bench.run(train, seed, *args, **settings))

            found = [untold(*so_far.once(f"{label} {seed}", partial(measure, seed))) for seed in seeds]
            say(f"{label}: {[judgement for _, judgement in found]}")
            return found

        reference = run("the demo", bench.ours, cold=True)
        ours = reference[0][0]
        for name in only or SETTINGS:
            rows = []
            for label, settings in TRIED.get(name, {}).items():
                same = is_the_demos(settings)
                if settings.get("prior", {}).get("share") == 0:  # epochs are shorter then
                    settings = {**settings, "steps": ours.steps}
                judged = reference if same else run(f"{name} {label}", bench.ours, **settings)
                rows.append((f"**{label}**" if same else label, judged))
            # The time of now: that of one that was stopped may be of another pace.
            seconds = bench.ours(0, cold=True).seconds if name == "native_by_time" else 0.0
            for rate, rank in NATIVE.get(name, ()):
                settings = {**FASTER, "learning_rate": rate, "rank": rank}
                label = f"{rate:g}, {rank}"
                if name == "native_by_time":
                    judged = run(f"{name} {label}", bench.native_within, seconds, **settings)
                else:
                    judged = run(f"{name} {label}", bench.native, ours.steps, **settings, **BY_STEPS)
                rows.append((label, judged))
            head = "TrainLoraNode: rate, rank" if name in NATIVE else name.replace("_", " ")
            yield name, "\n".join([*table(head, rows), "", about])
    so_far.forget()
