"""The learning benchmark: what a LoRA of a small character learns and spoils, ours beside ComfyUI's own trainer.

    python dev.py bench learning [--seeds N] [--count N] [--scenes N] [--write]

Both train on the shipped base model, on the same dozen pictures, and are judged by `lab/judge/judge.py` with the same
prompts and noise. No setting was chosen on this series of them and these seeds (captions of zorp come from the half
that earlier series had, too). ComfyUI's trainer is measured as it comes, and at its best: with the rate and rank that
come closest and lose least, a LoRA in fp32 and no checkpointing; each at the same number of steps and at the same
wall-clock. Ours has pictures of what it shall keep besides: one row gives them to the other as well, among
its own. One that was stopped goes on with the next seed when it is run again (`unfinished.py`): what is compared of a
seed was measured in one run.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from ..pack import ROOT
from .machine import describe_machine
from .native import native_lora
from .unfinished import Unfinished

WORKFLOW = ROOT / "example_workflows" / "learn_a_character.json"


@cache
def demo_settings() -> dict[str, Any]:
    """The trainer's settings in the demo's workflow, by name."""
    from lora_workbench.training.config import TrainConfig

    return _settings(TrainConfig, "LoRATrainer")


@cache
def demo_buckets() -> dict[str, Any]:
    """How the demo's workflow sorts pictures into sizes, by name."""
    from lora_workbench.training.data.buckets import BucketConfig

    return _settings(BucketConfig, "BucketImages")


@cache
def demo_regularization() -> dict[str, Any]:
    """How the demo's workflow keeps what the model knows, as arguments of `with_regularization`."""
    from lora_workbench.training.data.mixing import PRESERVES_PRIOR

    weight, share, target = _values("RegularizationImages")
    return {"weight": weight, "share": share, "preserves_prior": PRESERVES_PRIOR[target]}


def _settings(config: type, node_id: str) -> dict[str, Any]:
    from lora_workbench.training.settings import ordered_fields

    return dict(zip((field.name for field in ordered_fields(config)), _values(node_id), strict=True))


def _values(node_id: str) -> list[Any]:
    nodes = json.loads(WORKFLOW.read_text(encoding="utf-8"))["nodes"]
    return next(node["widgets_values"] for node in nodes if node["type"] == f"LoRAWorkbench_{node_id}")


# Pictures of the character in a step of the demo, in the mean; the rest of its batch is to be kept.
LEARNED = round(demo_settings()["batch_size"] / (1 + demo_regularization()["share"]))
# TrainLoraNode without checkpointing and with a LoRA in fp32, as ours has it; all else as it comes.
FASTER: dict[str, Any] = {"lora_dtype": "fp32", "gradient_checkpointing": False}
# What is best for it on zorp of what `dev.py bench defaults` tries (docs/defaults.md): what loses least of those that
# come as close as the closest. Where the time is given, one picture a step and more steps; where the steps are given,
# as many pictures in each as ours learns from.
BEST_BY_TIME = {**FASTER, "learning_rate": 1e-3, "rank": 8}
BEST_BY_STEPS = {**FASTER, "learning_rate": 4e-3, "rank": 64}
# Not by batch_size: in that the node predicts each picture from all captions of the batch and takes the mean.
BY_STEPS: dict[str, Any] = {"grad_accumulation_steps": LEARNED}


@dataclass(frozen=True)
class Trained:
    """A LoRA, and what it took to train it."""

    lora: dict[str, Any]
    steps: int
    seconds: float


class Bench:
    """The base model and one concept's pictures, trained on again and again.

    Args:
        concept: Which.
        folder: Where pictures, caches and runs may lie.
        count: Pictures for what is obeyed.
        series: TUNING or REPORTING.
        scenes: Pictures for what is lost; twice the count by default.
    """

    def __init__(
        self, concept: str, folder: Path, count: int = 24, series: int = 0, scenes: int | None = None
    ) -> None:
        from lora_workbench.lab.base_model import assemble
        from lora_workbench.lab.base_model.painter import Painter
        from lora_workbench.lab.demo.pictures import KEPT, KEPT_COUNT, KEPT_SEED, PICTURES, write_pictures
        from lora_workbench.lab.judge.judge import Judge
        from lora_workbench.lab.world import concepts, known

        checkpoint = ROOT / ".host" / "bench" / "base.safetensors"
        assemble.assemble(checkpoint)
        import comfy.sd

        self.painter, self.folder = Painter(checkpoint), folder
        # TrainLoraNode cannot train tensors of inference mode here ("Inference tensors cannot be saved for backward":
        # the model's q/k norms), so it gets a MODEL that was loaded outside of it.
        self.plain = comfy.sd.load_checkpoint_guess_config(str(checkpoint), output_vae=False, output_clip=False)[0]
        self.concept = concept
        self.pictures = concepts.pictures(concept, *concepts.TRAINED)
        repeats = Path(PICTURES).name.partition("_")[0]
        self.kept = kept = known.known_pictures(KEPT_COUNT, KEPT_SEED)
        write_pictures(folder / "pictures" / f"{repeats}_{concept}", self.pictures)
        write_pictures(folder / "kept" / Path(KEPT).name, kept)
        self.judge = Judge(self.painter, concept, count, series, scenes, [caption for _, caption in kept])

    def ceiling(self) -> float:
        """Fidelity of fresh drawn pictures that went through the model's VAE: what it lets through."""
        import torch
        from lora_workbench.lab.world import concepts

        drawn = [picture for picture, _ in concepts.pictures(self.concept, 24, 3000)]
        with torch.inference_mode():
            return float(self.judge.fidelity(self.painter.through_vae(drawn)))

    def ours(
        self, seed: int, *, prior: dict[str, Any] | None = None, cold: bool = False, **settings: Any
    ) -> Trained:
        """Train with LoRA Workbench.

        Args:
            seed: Of the run.
            prior: How it keeps what it knows: arguments of `with_regularization`, or of `with_prior_preservation` with
                `own` beside them; {"share": 0} is not at all. As in the demo by default.
            cold: Encode all pictures and captions, as the first run on them does.
            settings: Those that differ from the demo's.
        """
        import torch
        from lora_workbench.training.config import TrainConfig
        from lora_workbench.training.data.buckets import BucketConfig, assign_buckets
        from lora_workbench.training.data.mixing import with_prior_preservation, with_regularization
        from lora_workbench.training.data.scan import scan_folder
        from lora_workbench.training.events import SilentSink
        from lora_workbench.training.train import train_lora

        config = TrainConfig(**{**demo_settings(), "seed": seed, **settings})
        keep = {**demo_regularization(), **(prior or {})}
        if cold:
            shutil.rmtree(self.folder / "cache", ignore_errors=True)
        started = time.monotonic()
        with torch.inference_mode():  # as ComfyUI runs nodes
            dataset, kept = (scan_folder(self.folder / name) for name in ("pictures", "kept"))
            if keep.pop("own", False):
                dataset = with_prior_preservation(
                    replace(dataset, trigger=self.concept), "", weight=keep["weight"], share=keep["share"]
                )
            elif keep["share"]:
                dataset = with_regularization(dataset, kept, **keep)
            dataset = assign_buckets(dataset, BucketConfig(**demo_buckets()))
            result = train_lora(
                self.painter.model, self.painter.clip, self.painter.vae, dataset, config, root=self.folder / "runs",
                cache_root=self.folder / "cache", sink=SilentSink(),
            )  # fmt: skip
        return Trained(result.lora, result.summary.steps, time.monotonic() - started)

    def native(self, seed: int, steps: int, *, mixed: bool = False, **settings: Any) -> Trained:
        """Train with ComfyUI's TrainLoraNode, on latents and conditioning as its nodes for them make them.

        It computes in bf16, as it comes, where this machine has that, else in fp32: so does ours by itself.

        Args:
            seed: Of the run.
            steps: How many.
            mixed: Give it the pictures that ours keeps what it knows by, as often as its own.
            settings: Inputs of the node that are not as they come.
        """
        import numpy as np
        import torch
        from lora_workbench.training.preflight import compute_precision

        auto = compute_precision("auto", self.painter.model.load_device)
        settings = {"training_dtype": "bf16" if auto == torch.bfloat16 else "fp32", **settings}
        started = time.monotonic()
        with torch.inference_mode():
            shown = self.pictures + (self.kept if mixed else [])
            pixels = [torch.from_numpy(np.array(picture)).float()[None] / 255 for picture, _ in shown]
            latents = [{"samples": self.painter.vae.encode(picture)} for picture in pixels]
            positive = [self.painter.encode(caption) for _, caption in shown]
            if mixed:  # the node takes each of its list as often as the next
                own, times = len(self.pictures), len(self.kept) // len(self.pictures) - 1
                latents, positive = latents + latents[:own] * times, positive + positive[:own] * times
            lora = native_lora(self.plain, latents, positive, seed=seed, steps=steps, **settings)
        return Trained(lora, steps, time.monotonic() - started)

    def native_within(self, seed: int, seconds: float, **settings: Any) -> Trained:
        """Train with ComfyUI's TrainLoraNode for so long, with all it does besides, or a little longer.

        How many steps that are is taken from its pace over some; where they turn out to take less, it begins again with
        more.
        """
        self.native(0, 2, **settings)  # warms up
        short, long = (self.native(0, steps, **settings) for steps in (20, 160))
        per_step = (long.seconds - short.seconds) / (long.steps - short.steps)
        fixed = max(0.0, short.seconds - short.steps * per_step)
        steps = max(1, round((seconds - fixed) / per_step))
        while (trained := self.native(seed, steps, **settings)).seconds < 0.98 * seconds:
            steps = math.ceil(steps * seconds / trained.seconds)
        return trained

    def run(self, train: Callable[..., Trained], seed: int, *args: Any, **settings: Any) -> tuple[Trained, Any]:
        """Train with `ours` or `native`, put the LoRA on the model and judge it."""
        trained = train(seed, *args, **settings)
        return trained, self.judge.judge(self.with_lora(trained))

    def with_lora(self, trained: Trained) -> Any:
        """The base MODEL with a LoRA on it."""
        import torch
        from lora_workbench.training.host.apply import apply_lora

        with torch.inference_mode():
            return apply_lora(self.painter.model, None, trained.lora, 1.0, 1.0)[0]


def about_runs(seeds: Sequence[int], count: int, scenes: int) -> str:
    """How much was measured, in a sentence."""
    from lora_workbench.lab.judge.judge import ALIKE, names_color

    more = "s, in brackets least to most" if len(seeds) > 1 else ""
    colored = sum(names_color(number) for number in range(count))
    return (
        f"{len(seeds)} seed{more}, prompts and noise the same for all; {ALIKE} pictures for fidelity, {count} for what "
        f"is obeyed, {colored} of them for the colour, {scenes} for what is lost and for drift, {scenes // 2} for "
        "other figures."
    )


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


Rows = list[tuple[str, list[tuple[Trained, Any]]]]


def compare(
    concept: str, seeds: Sequence[int], count: int, scenes: int, so_far: Unfinished
) -> tuple[Rows, float, float]:
    """Train and judge each trainer with each seed that has not been yet.

    Returns:
        (what, one pair for each seed) for each row, the fidelity that the VAE lets through, and the one beyond which a
        picture shows the character.
    """
    from lora_workbench.lab.judge.judge import REPORTING

    rows: dict[str, list[tuple[Trained, Any]]] = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        bench = Bench(concept, Path(folder), count, REPORTING, scenes)
        for seed in seeds:
            for name, *result in so_far.once(seed, partial(compare_once, bench, seed)):
                rows.setdefault(name, []).append(untold(*result))
        rows["the base, without a LoRA"] = [(Trained({}, 0, 0.0), bench.judge.judge(bench.painter.model))]
        return list(rows.items()), bench.ceiling(), bench.judge.least


def compare_once(bench: Bench, seed: int) -> list[tuple[Any, ...]]:
    """Train and judge each trainer with one seed, one after the other; returns (what, *told) for each."""
    found: list[tuple[Any, ...]] = []

    def run(name: str, train: Callable[..., Trained], *args: Any, **settings: Any) -> Trained:
        trained, judgement = bench.run(train, seed, *args, **settings)
        say(f"{bench.concept} seed {seed} {name}: {trained.steps} steps, {trained.seconds:.0f} s, {judgement}")
        found.append((name, *told(trained, judgement)))
        return trained

    bench.ours(0, steps=2)  # warms up
    ours = run("LoRA Workbench", bench.ours, cold=True)
    alone = {"prior": {"share": 0}, "batch_size": LEARNED, "steps": ours.steps}
    run("LoRA Workbench, keeping nothing", bench.ours, cold=True, **alone)
    for how, by_time, by_steps in (
        ("as it comes", {}, {}), ("at its best", BEST_BY_TIME, BEST_BY_STEPS),
    ):  # fmt: skip
        run(f"TrainLoraNode {how}, as much time", bench.native_within, ours.seconds, **by_time)
        run(f"TrainLoraNode {how}, as many steps", bench.native, ours.steps, **by_steps, **BY_STEPS)
    mixed = "TrainLoraNode at its best, ours' pictures to keep among its own, as much time"
    run(mixed, bench.native_within, ours.seconds, mixed=True, **BEST_BY_TIME)
    return found


def told(trained: Trained, judgement: Any) -> tuple[int, float, dict[str, Any]]:
    """What a run was worth, for `Unfinished`."""
    return trained.steps, trained.seconds, dataclasses.asdict(judgement)


def untold(steps: int, seconds: float, judged: dict[str, Any]) -> tuple[Trained, Any]:
    """The same back, without the LoRA."""
    from lora_workbench.lab.judge.judge import Judgement

    return Trained({}, steps, seconds), Judgement(**{**judged, "worded": tuple(judged["worded"])})


def ahead(rows: Rows) -> str:
    """The fidelity of each seed, and how often that of ours is the higher one."""

    def each(found: list[tuple[Trained, Any]]) -> str:
        return ", ".join(f"{judgement.fidelity:.3f}" for _, judgement in found)

    ours, others = rows[0][1], [row for row in rows if row[0].startswith("TrainLoraNode")]
    parts = []
    for name, found in others:
        wins = sum(one.fidelity > two.fidelity for (_, one), (_, two) in zip(ours, found, strict=True))
        parts.append(f"{name}: on {wins} of {len(found)} seeds ({each(found)})")
    return f"Fidelity, seed by seed {each(ours)}, is ahead of {'; '.join(parts)}."


def by_wording(rows: Rows) -> str:
    """How often each row's pictures show the character, for each wording of the prompts, in the mean of the seeds."""
    from lora_workbench.lab.judge.judge import WORDINGS

    parts = []
    for name, found in rows:
        each = zip(*(judgement.worded for _, judgement in found), strict=True)
        parts.append(f"{name}: " + ", ".join(f"{statistics.mean(shares):.0%}" for shares in each))
    return f"Pictures that show it, for prompts worded {', '.join(WORDINGS)}: {'; '.join(parts)}."


def spread(values: Sequence[float], scale: float = 1, digits: int = 2) -> str:
    """Mean, and least to most in brackets."""
    scaled = [value * scale for value in values]
    mean = f"{statistics.mean(scaled):.{digits}f}"
    return mean if len(scaled) == 1 else f"{mean} ({min(scaled):.{digits}f} to {max(scaled):.{digits}f})"


COLUMNS = {
    "fidelity": ("fidelity", 1, 2), "shown": ("shows it, %", 100, 0), "ground": ("background obeyed, %", 100, 0),
    "worn": ("colour obeyed, %", 100, 0), "lost": ("lost without the trigger, points", 100, 1),
    "spoiled": ("spoiled, points", 100, 1),
    "drift": ("drift without it, ΔE", 1, 1), "leaked": ("other figures turned into it, points", 100, 1),
}  # fmt: skip


def table(head: str, rows: Rows, ours: float | None = None) -> list[str]:
    """The rows as a table: mean and range over the seeds; times as ratios of ours, in seconds, where it is given."""
    heads = ["steps", *(["time, of ours"] if ours else []), *(head for head, _, _ in COLUMNS.values())]
    lines = [f"| {head} | " + " | ".join(heads) + " |", "| --- |" + " --- |" * len(heads)]
    for name, found in rows:
        cells = [str(round(statistics.mean(trained.steps for trained, _ in found)))]
        if ours:
            cells.append(f"{statistics.mean(trained.seconds for trained, _ in found) / ours:.2f} ×")
        cells += [
            spread([getattr(judgement, field) for _, judgement in found], scale, digits)
            for field, (_, scale, digits) in COLUMNS.items()
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def learning_benchmark(
    concepts: Sequence[str], seeds: Sequence[int], count: int, scenes: int
) -> Iterator[tuple[str, str]]:
    """Compare the trainers on each concept; yields (concept, table)."""
    for concept in concepts:
        so_far = Unfinished(f"learning {concept} {count} {scenes}")
        rows, ceiling, least = compare(concept, seeds, count, scenes, so_far)
        about = f"{about_runs(seeds, count, scenes)} {describe_machine()}"
        base = rows[-1][1][0][1].kept
        knows = (
            f"Of the prompts without the trigger the base paints {base:.0%} right. A drawn picture that went through "
            f"the model's VAE has a fidelity of {ceiling:.2f}. A picture shows the character from {least:.2f} on."
        )
        ours = statistics.mean(trained.seconds for trained, _ in rows[0][1])
        told_below = [knows, ahead(rows), by_wording(rows)]
        yield concept, "\n\n".join([about, "\n".join(table(concept, rows, ours)), *told_below])
        so_far.forget()
