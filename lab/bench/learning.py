"""The learning benchmark: what a LoRA of a small character learns and spoils, with our trainer and with TrainLoraNode.

    python dev.py bench learning [--seeds N] [--count N] [--scenes N] [--write]

Both train on the shipped base model and the same twelve pictures. `lab/judge/judge.py` judges both with the same
prompts and noise. No setting was chosen on these prompts and seeds, but zorp's captions come from the half that earlier
series used. TrainLoraNode runs with its default settings, and tuned: the rate and rank that come closest and lose
least, a LoRA in fp32, no checkpointing. It runs for as many steps as ours and for as much wall-clock time. Ours also
trains on regularization pictures; one row gives them to TrainLoraNode too. A stopped benchmark continues with the next
seed (`unfinished.py`), so all rows of one seed come from one run.
"""


from __future__ import annotations

import dataclasses
import json
import math
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from ..pack import ROOT
from .machine import measured_on
from .native import native_lora
from .results import Row
from .unfinished import Unfinished

WORKFLOW = ROOT / "example_workflows" / "lora_5_learn_a_character.json"


@cache
def demo_settings() -> dict[str, Any]:
    """The trainer's settings in the demo's workflow, by name."""
    from lora_workbench.training.config import TrainerSettings

    return _settings(TrainerSettings, "LoRATrainer")


@cache
def demo_buckets() -> dict[str, Any]:
    """How the demo's workflow sorts pictures into sizes, by name."""
    from lora_workbench.training.data.buckets import BucketConfig

    return _settings(BucketConfig, "BucketImages")


@cache
def demo_regularization() -> dict[str, Any]:
    """The demo's prior preservation, as arguments of `with_regularization`."""
    from lora_workbench.training.data.mixing import PRESERVES_PRIOR

    weight, share, target = _values("RegularizationImages")
    return {"weight": weight, "share": share, "preserves_prior": PRESERVES_PRIOR[target]}


def _settings(config: type, node_id: str) -> dict[str, Any]:
    from lora_workbench.training.settings import ordered_fields

    return dict(zip((field.name for field in ordered_fields(config)), _values(node_id), strict=True))


def _values(node_id: str) -> list[Any]:
    nodes = json.loads(WORKFLOW.read_text(encoding="utf-8"))["nodes"]
    return next(node["widgets_values"] for node in nodes if node["type"] == f"LoRAWorkbench_{node_id}")


# Mean number of pictures of the character in a step of the demo; the rest are regularization pictures.
LEARNED = round(demo_settings()["batch_size"] / (1 + demo_regularization()["share"]))
# TrainLoraNode without checkpointing and with a LoRA in fp32, like ours; otherwise default settings.
FASTER: dict[str, Any] = {"lora_dtype": "fp32", "gradient_checkpointing": False}
# The tuned settings of TrainLoraNode: of the rates and ranks in defaults.csv that are as close as the closest, the one
# that loses least, on zorp. At the same time it has one picture a step and more steps. At the same steps it has as many
# pictures in each as ours learns from.
BEST_BY_TIME = {**FASTER, "learning_rate": 1e-3, "rank": 8}
BEST_BY_STEPS = {**FASTER, "learning_rate": 4e-3, "rank": 64}
# Not batch_size: in a batch the node predicts each picture from all captions and takes the mean.
BY_STEPS: dict[str, Any] = {"grad_accumulation_steps": LEARNED}


@dataclass(frozen=True)
class Trained:
    """A LoRA, and the steps and time it took."""

    lora: dict[str, Any]
    steps: int
    seconds: float


class Bench:
    """The base model and one concept's pictures, for repeated trainings.

    Args:
        concept: One of CONCEPTS.
        folder: For pictures, caches and runs.
        count: Pictures for editability.
        series: TUNING or REPORTING.
        scenes: Pictures for preservation; twice the count by default.
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
        # TrainLoraNode fails on tensors of inference mode here ("Inference tensors cannot be saved for backward": the
        # model's q/k norms), so it gets a MODEL that was loaded outside inference mode.
        self.plain = comfy.sd.load_checkpoint_guess_config(str(checkpoint), output_vae=False, output_clip=False)[0]
        self.concept = concept
        self.pictures = concepts.pictures(concept, *concepts.TRAINED)
        repeats = Path(PICTURES).name.partition("_")[0]
        self.kept = kept = known.known_pictures(KEPT_COUNT, KEPT_SEED)
        write_pictures(folder / "pictures" / f"{repeats}_{concept}", self.pictures)
        write_pictures(folder / "kept" / Path(KEPT).name, kept)
        self.judge = Judge(self.painter, concept, count, series, scenes, [caption for _, caption in kept])

    def ceiling(self) -> float:
        """Likeness of fresh drawn pictures that went through the model's VAE, which limits every LoRA."""
        import torch
        from lora_workbench.lab.world import concepts

        drawn = [picture for picture, _ in concepts.pictures(self.concept, 24, 3000)]
        with torch.inference_mode():
            return float(self.judge.likeness(self.painter.through_vae(drawn)))

    def ours(
        self, seed: int, *, prior: dict[str, Any] | None = None, cold: bool = False, **settings: Any
    ) -> Trained:
        """Train with LoRA Workbench.

        Args:
            seed: Of the run.
            prior: Prior preservation: arguments of `with_regularization`, or with `own` those of
                `with_prior_preservation`. {"share": 0} turns it off. The demo's by default.
            cold: Encode all pictures and captions, as a first run does.
            settings: Changes to the demo's settings.
        """
        import torch
        from lora_workbench.training.config import TrainConfig
        from lora_workbench.training.data.buckets import BucketConfig, assign_buckets
        from lora_workbench.training.data.mixing import with_prior_preservation, with_regularization
        from lora_workbench.training.data.scan import scan_folder
        from lora_workbench.training.events import SilentSink
        from lora_workbench.training.train import train_lora

        config = TrainConfig(**{**demo_settings(), "if_run_before": "train again", "seed": seed, **settings})
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
        """Train with ComfyUI's TrainLoraNode, on latents and conditioning made by ComfyUI's nodes.

        It computes in bf16, its default, if this machine has it, else in fp32. Ours chooses the same.

        Args:
            seed: Of the run.
            steps: How many.
            mixed: Add our regularization pictures, each as often as the character's.
            settings: Inputs of the node that differ from its defaults.
        """
        import numpy as np
        import torch
        from lora_workbench.training.host.precision import compute_precision

        auto = compute_precision("auto", self.painter.model.load_device, torch.float32)
        settings = {"training_dtype": "bf16" if auto == torch.bfloat16 else "fp32", **settings}
        started = time.monotonic()
        with torch.inference_mode():
            shown = self.pictures + (self.kept if mixed else [])
            pixels = [torch.from_numpy(np.array(picture)).float()[None] / 255 for picture, _ in shown]
            latents = [{"samples": self.painter.vae.encode(picture)} for picture in pixels]
            positive = [self.painter.encode(caption) for _, caption in shown]
            if mixed:  # the node takes each entry of its list equally often
                own, times = len(self.pictures), len(self.kept) // len(self.pictures) - 1
                latents, positive = latents + latents[:own] * times, positive + positive[:own] * times
            lora = native_lora(self.plain, latents, positive, seed=seed, steps=steps, **settings)
        return Trained(lora, steps, time.monotonic() - started)

    def native_within(self, seed: int, seconds: float, **settings: Any) -> Trained:
        """Train with ComfyUI's TrainLoraNode for this time or a little longer, its overhead included.

        The number of steps comes from its pace in short runs. If the training takes less time, it is repeated with more
        steps.
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
        """Train with `ours` or `native`, apply the LoRA and judge it."""
        trained = train(seed, *args, **settings)
        return trained, self.judge.judge(self.with_lora(trained))

    def with_lora(self, trained: Trained) -> Any:
        """The base MODEL with a LoRA applied."""
        import torch
        from lora_workbench.training.host.apply import apply_lora

        with torch.inference_mode():
            return apply_lora(self.painter.model, None, trained.lora, 1.0, 1.0)[0]


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


Runs = dict[int, tuple[Trained, Any]]  # a training and its Judgement for each seed
OURS, BASE = "LoRA Workbench", "base model, no LoRA"
THRESHOLD = "least likeness that shows the character"  # a row of no trainer


def compare(
    concept: str, seeds: Sequence[int], count: int, scenes: int, so_far: Unfinished
) -> tuple[dict[str, Runs], float, float]:
    """Train and judge each trainer with each seed that is not measured yet.

    Returns:
        The runs of each trainer, the likeness of drawn pictures that went through the VAE, and the least likeness that
        shows the character.
    """
    from lora_workbench.lab.judge.judge import REPORTING

    found: dict[str, Runs] = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        bench = Bench(concept, Path(folder), count, REPORTING, scenes)
        for seed in seeds:
            for name, *result in so_far.once(seed, partial(compare_once, bench, seed)):
                found.setdefault(name, {})[seed] = unpacked(*result)
        found[BASE] = {0: (Trained({}, 0, 0.0), bench.judge.judge(bench.painter.model))}
        return found, bench.ceiling(), bench.judge.least


def compare_once(bench: Bench, seed: int) -> list[tuple[Any, ...]]:
    """Train and judge each trainer with one seed, one after the other; returns (trainer, *packed) for each."""
    found: list[tuple[Any, ...]] = []

    def run(name: str, train: Callable[..., Trained], *args: Any, **settings: Any) -> Trained:
        trained, judgement = bench.run(train, seed, *args, **settings)
        say(f"{bench.concept} seed {seed} {name}: {trained.steps} steps, {trained.seconds:.0f} s, {judgement}")
        found.append((name, *packed(trained, judgement)))
        return trained

    bench.ours(0, steps=2)  # warms up
    ours = run(OURS, bench.ours, cold=True)
    alone = {"prior": {"share": 0}, "batch_size": LEARNED, "steps": ours.steps}
    run(f"{OURS}, no prior preservation", bench.ours, cold=True, **alone)
    for how, by_time, by_steps in (("default settings", {}, {}), ("tuned", BEST_BY_TIME, BEST_BY_STEPS)):
        run(f"TrainLoraNode, {how}, same time", bench.native_within, ours.seconds, **by_time)
        run(f"TrainLoraNode, {how}, same steps", bench.native, ours.steps, **by_steps, **BY_STEPS)
    mixed = "TrainLoraNode, tuned, with regularization pictures, same time"
    run(mixed, bench.native_within, ours.seconds, mixed=True, **BEST_BY_TIME)
    return found


def packed(trained: Trained, judgement: Any) -> tuple[int, float, dict[str, Any]]:
    """A run as values that JSON knows, for `Unfinished`; the LoRA is left out."""
    return trained.steps, trained.seconds, dataclasses.asdict(judgement)


def unpacked(steps: int, seconds: float, judged: dict[str, Any]) -> tuple[Trained, Any]:
    """A run from its packed values."""
    from lora_workbench.lab.judge.judge import Judgement

    return Trained({}, steps, seconds), Judgement(**{**judged, "worded": tuple(judged["worded"])})


def values(judgement: Any) -> Row:
    """What a judgement adds to a row: shares in percent, losses in prompts of a hundred."""
    return {
        "likeness": judgement.likeness, "shown": 100 * judgement.shown, "background": 100 * judgement.ground,
        "colour": 100 * judgement.worn, "lost": 100 * judgement.lost, "spoiled": 100 * judgement.spoiled,
        "drift": judgement.drift, "leaked": 100 * judgement.leaked,
    }  # fmt: skip


def words(judgement: Any) -> Row:
    """How often pictures show the character for each wording of the prompt, and prompts painted right, in percent."""
    names = ("shown_as_trained", "shown_background_alone", "shown_as_tags")
    return {**{name: 100 * share for name, share in zip(names, judgement.worded, strict=True)},
            "right": 100 * judgement.kept}  # fmt: skip


def rows_of(about: Row, each: Mapping[object, Row]) -> list[Row]:
    """One row for each seed, and their mean, least and most."""

    def row(seed: object, found: Row) -> Row:
        return {**about, "seed": seed, **{name: round(value, 3) for name, value in found.items()}}

    rows = [row(seed, found) for seed, found in each.items()]
    for name, merge in (("mean", statistics.mean), ("least", min), ("most", max)):
        columns = {column: merge(found[column] for found in each.values()) for column in next(iter(each.values()))}
        rows.append(row(name, columns))
    return rows


def learning_benchmark(concepts: Sequence[str], seeds: Sequence[int], count: int, scenes: int) -> Iterator[list[Row]]:
    """Compare the trainers on each concept; yields the rows of each."""
    for concept in concepts:
        so_far = Unfinished(f"learning {concept} {count} {scenes}")
        found, ceiling, least = compare(concept, seeds, count, scenes, so_far)
        ours = statistics.mean(trained.seconds for trained, _ in found[OURS].values())
        about = {**measured_on(), "character": concept, "pictures": count, "prompts": scenes}
        rows: list[Row] = []
        for trainer, runs in found.items():
            each = {
                seed: {
                    "steps": trained.steps,
                    "time_of_ours": trained.seconds / ours,
                    **values(judged),
                    **words(judged),
                }
                for seed, (trained, judged) in runs.items()
            }
            rows += rows_of({**about, "trainer": trainer}, each)
        for what, likeness in (("drawn pictures through the VAE", ceiling), (THRESHOLD, least)):
            rows.append({**about, "trainer": what, "seed": "mean", "likeness": round(likeness, 3)})
        yield rows
        so_far.forget()
