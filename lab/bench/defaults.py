"""The effect of each setting: one is changed at a time, on the concept reserved for tuning.

    python dev.py bench defaults [--seeds N] [--only SETTING ...] [--write]

A stopped run continues when it is started again (`unfinished.py`).
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from .learning import (
    BY_STEPS,
    FASTER,
    LEARNED,
    Bench,
    Runs,
    Trained,
    demo_regularization,
    demo_settings,
    packed,
    rows_of,
    say,
    unpacked,
    values,
)
from .machine import measured_on
from .results import Row
from .unfinished import Unfinished

CONCEPT = "zorp"
Settings = dict[str, Any]


def each(name: str, *values: Any) -> dict[str, Settings]:
    """One row for each value of a setting."""
    return {str(value): {name: value} for value in values}


def optimizer(name: str, rate: float, **more: Any) -> dict[str, Settings]:
    """A row for an optimizer; each has a rate of its own."""
    return {f"{name}, {rate:g}": {"optimizer": name, "learning_rate": rate, **more}}


def node_settings(**changed: Any) -> Settings:
    """The default settings of the trainer node, without the run's name and seed."""
    from lora_workbench.training.config import TrainerSettings

    fields = dataclasses.fields(TrainerSettings)
    own = {field.name: field.default for field in fields if field.name not in ("name", "seed")}
    return {**own, **changed}


# The values tried of each setting, and how they differ from the demo's settings.
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
    # Prior preservation: see `Bench.ours`.
    "prior": {
        "none": {"prior": {"share": 0}, "batch_size": LEARNED},
        "trained as they are, one per picture, weight 1": {"prior": {"preserves_prior": False, "weight": 1.0}},
        "prior preservation, one per picture, weight 2.5": {"prior": {"weight": 2.5}},
        "prior preservation, one per picture, weight 5": {"prior": {"weight": 5.0}},
        "prior preservation, one per picture, weight 8": {"prior": {"weight": 8.0}},
        "prior preservation, one per two pictures, weight 5": {"prior": {"share": 0.5}, "batch_size": 6},
        "the Prior Preservation node, no extra pictures, weight 5": {"prior": {"own": True, "weight": 5.0}},
    },
    # The node's default settings in the template's graph, with its regularization pictures. They suit models of a
    # hundred times this size.
    "node": {
        "the template's": {}, "the node's": node_settings(), "the node's, rate 1e-3": node_settings(learning_rate=1e-3),
    },
}  # fmt: skip
# Rate and rank of TrainLoraNode, to compare it tuned: with as many steps as ours and as many pictures in each step, and
# in as much time with one picture in each step.
NATIVE = {
    "native_by_steps": (
        (5e-4, 8), (1e-3, 16), (2e-3, 16), (2e-3, 64), (4e-3, 16), (4e-3, 32), (4e-3, 64), (4e-3, 128), (8e-3, 16),
    ),
    "native_by_time": ((5e-4, 8), (1e-3, 8), (1e-3, 16), (2e-3, 4), (2e-3, 8), (2e-3, 16), (4e-3, 16)),
}  # fmt: skip
SETTINGS = (*TRIED, *NATIVE)


class Default(NamedTuple):
    """One line of docs/defaults.md.

    Attributes:
        name: Of the setting.
        why: The reason for the node's default, in a sentence or two.
        other: The value it is compared with, as in TRIED.
        effect: What is compared: "likeness" or "lost".
    """

    name: str
    why: str
    other: str
    effect: str = "likeness"


DEFAULTS = {
    "learning_rate": Default("learning rate", "kohya's users and ai-toolkit use it with AdamW.", "0.001"),
    "rank": Default("rank", "ai-toolkit and OneTrainer use it. Here a higher rank gained nothing.", "4"),
    "alpha": Default("alpha", "Strength stays 1 when the rank changes.", "8"),
    "lora_plus": Default("LoRA+ ratio", "Published learning rates assume none.", "1"),
    "warmup_steps": Default("warm-up steps", "kohya's default.", "0"),
    "timesteps": Default(
        "timesteps", "As the model was trained: logit-normal for flow models, uniform for SD1.5 and SDXL.", "uniform"),
    "epochs": Default("epochs", "Twelve pictures with ten repeats give 1,200 steps, as other trainers recommend.", "2"),
    "batch_size": Default("batch size", "One picture fits every GPU.", "16"),
    "scheduler": Default("scheduler", "Linear and rex are as good, a constant rate is not.", "constant_with_warmup"),
    "optimizer": Default("optimizer", "The best known one. Adafactor, Lion and ScheduleFreeAdamW are as good.",
                         "Adafactor, 0.003"),
    "dropout": Default("dropout", "It changes nothing here.", "0.1"),
    "prior": Default("prior preservation weight", "Half the weight is as good, more keeps no more.", "none", "lost"),
}  # fmt: skip


def defaults_table(rows: list[Row]) -> str:
    """The table of docs/defaults.md: each setting, its default, the reason, what was compared, and the effect."""
    means = {(row["setting"], row["value"]): row for row in rows if row["seed"] == "mean"}
    chosen = {row["setting"]: row for row in rows if row["seed"] == "mean" and row["template"]}
    node, template = node_settings(), demo_settings()
    lines = ["| setting | default | why | compared | effect |", "| --- | --- | --- | --- | --- |"]
    for setting, (name, why, other, effect) in DEFAULTS.items():
        own, compared = chosen[setting], means[setting, other]
        change = float(own[effect]) - float(compared[effect])
        text = f"{change:+.2f}" if effect == "likeness" else f"{change:+.1f} lost"
        text += " (one seed)" if own["seeds"] == "1" else ""
        if setting == "prior":
            pair = (weight := f"{demo_regularization()['weight']:g}", weight)
        else:
            pair = tuple(_shown(setting, known[setting]) for known in (node, template))
        compared_with = other.split(",")[0]
        lines.append(f"| {name} | {pair[0]} | {why} | {compared_with} → {pair[1]} | {text} |")
    return "\n".join(lines)


def _shown(setting: str, value: Any) -> str:
    if setting == "alpha" and not value:
        return "the rank"
    return f"{value:g}" if isinstance(value, float) else str(value)


def is_the_demos(settings: Settings) -> bool:
    """Whether a row is the demo itself."""
    own, prior = demo_settings(), {**demo_regularization(), "own": False}
    same_prior = all(prior[name] == value for name, value in settings.get("prior", {}).items())
    return same_prior and all(own[name] == value for name, value in settings.items() if name != "prior")


def defaults_benchmark(seeds: Sequence[int], count: int, scenes: int, only: Sequence[str] = ()) -> Iterator[list[Row]]:
    """Train and judge every value of every setting; yields the rows of each setting.

    Raises:
        SystemExit: `only` holds a setting that is not tried.
    """
    for name in only:
        if name not in SETTINGS:
            raise SystemExit(f"{name!r} is not a setting that is tried. Choose from {', '.join(SETTINGS)}.")
    about = {**measured_on(), "seeds": len(seeds), "pictures": count, "prompts": scenes}
    so_far = Unfinished(f"defaults {count} {scenes} {sorted(only)}")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        bench = Bench(CONCEPT, Path(folder), count, scenes=scenes)
        bench.ours(0, steps=2)  # warms up, and fills the caches

        def run(label: str, train: Callable[..., Trained], *args: Any, **settings: Any) -> Runs:
            def measure(seed: int) -> tuple[int, float, dict[str, float]]:
                return packed(*bench.run(train, seed, *args, **settings))

            found = {seed: unpacked(*so_far.once(f"{label} {seed}", partial(measure, seed))) for seed in seeds}
            say(f"{label}: {[judgement for _, judgement in found.values()]}")
            return found

        reference = run("the demo", bench.ours, cold=True)
        steps = reference[seeds[0]][0].steps
        for name in only or SETTINGS:
            found: dict[str, Runs] = {}
            own = ""
            for label, settings in TRIED.get(name, {}).items():
                if is_the_demos(settings):
                    own, found[label] = label, reference
                    continue
                if settings.get("prior", {}).get("share") == 0:  # epochs are shorter then
                    settings = {**settings, "steps": steps}
                found[label] = run(f"{name} {label}", bench.ours, **settings)
            # Timed now: a run that was stopped may have had another pace.
            seconds = bench.ours(0, cold=True).seconds if name == "native_by_time" else 0.0
            for rate, rank in NATIVE.get(name, ()):
                settings = {**FASTER, "learning_rate": rate, "rank": rank}
                label = f"{rate:g}, {rank}"
                if name == "native_by_time":
                    found[label] = run(f"{name} {label}", bench.native_within, seconds, **settings)
                else:
                    found[label] = run(f"{name} {label}", bench.native, steps, **settings, **BY_STEPS)
            rows: list[Row] = []
            for label, runs in found.items():
                this = {**about, "setting": name, "value": label, "template": "yes" if label == own else ""}
                one = {seed: {"steps": trained.steps, **values(judged)} for seed, (trained, judged) in runs.items()}
                rows += rows_of(this, one)
            yield rows
    so_far.forget()
