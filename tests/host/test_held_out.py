"""Held-out pictures in whole runs: what is measured, that training does not notice it, and what a failure costs."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from support.card import STREAMED, on_rung
from support.marks import long_but
from support.photos import write_photos
from support.session import AGAIN


@pytest.fixture(scope="module")
def checkpoint(comfy_host, tiny_checkpoint) -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE of the small SD1.5 checkpoint."""
    import comfy.sd

    with torch.inference_mode():
        return comfy.sd.load_checkpoint_guess_config(str(tiny_checkpoint))[:3]


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


def photos(folder: Path, names: list[str]) -> Any:
    from lora_workbench.training.data.buckets import BucketConfig, assign_buckets
    from lora_workbench.training.data.scan import scan_folder

    folder.mkdir(parents=True)
    write_photos(folder, names, longest=128)
    return assign_buckets(scan_folder(folder, trigger="zorp"), BucketConfig(resolution=64, step=32))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Any:
    """Three pictures to train."""
    return photos(tmp_path_factory.mktemp("data") / "1_photo", ["cat", "coffee", "rocket"])


@pytest.fixture(scope="module")
def others(tmp_path_factory) -> Any:
    """Two other pictures."""
    return photos(tmp_path_factory.mktemp("others") / "1_other", ["astronaut", "motorcycle"])


def train(parts: Any, dataset: Any, folder: Path, cache: Path, held_out: Any = None, start_from: Any = None,
          **settings: Any) -> Any:  # fmt: skip
    from lora_workbench.training.config import TrainConfig
    from lora_workbench.training.events import SilentSink
    from lora_workbench.training.train import train_lora
    from lora_workbench.training.watch import Watch

    config = TrainConfig(**{
        "name": "run", "steps": 3, "rank": 4, "learning_rate": 1e-2, "batch_size": 2, "precision": "fp32",
        "warn_about_steps": False, **AGAIN, **settings,
    })  # fmt: skip
    with torch.inference_mode():
        return train_lora(
            *parts, dataset, config, root=folder, cache_root=cache, sink=SilentSink(), start_from=start_from,
            watch=Watch(held_out=held_out),
        )  # fmt: skip


def held(every_steps: int = 1, share: float = 0.0, dataset: Any = None) -> Any:
    from lora_workbench.training.watch import HeldOut

    return HeldOut(every_steps, share, dataset)


WAYS: dict[str, dict[str, Any]] = {
    "dropout": {"dropout": 0.5},
    "bf16, EMA": {"precision": "bf16", "ema_decay": 0.9},
    "schedule-free": {"optimizer": "ScheduleFreeAdamW"},
    "text encoder": {"clip_l": True, "gradient_checkpointing": True},
    "streamed, Lion": {"optimizer": "Lion", "learning_rate": 1e-3},
}


@pytest.mark.parametrize("way", long_but({"streamed, Lion"}, WAYS))
def test_it_measures_what_the_file_gives_and_training_does_not_notice(
    way: str, checkpoint, dataset, others, cache, tmp_path
) -> None:
    """A run that begins with the LoRA of another one measures at its start what that one measured at its end."""
    settings = WAYS[way]
    if "optimizer" in settings:
        pytest.importorskip("pytorch_optimizer", reason="the package with this optimizer is not installed")
    streams = way.startswith("streamed")
    with on_rung(**STREAMED) if streams else nullcontext():
        plain = train(checkpoint, dataset, tmp_path, cache, **settings)
        watched = train(checkpoint, dataset, tmp_path, cache, held(dataset=others), **settings)
    assert watched.summary.memory.endswith("streamed from system memory") == streams
    assert watched.summary.losses == plain.summary.losses
    assert all(torch.equal(plain.lora[name], tensor) for name, tensor in watched.lora.items())
    found = watched.summary.held_out
    assert [line["step"] for line in found] == [0, 1, 2, 3]
    assert found[0]["loss"] == pytest.approx(found[0]["base"], rel=1e-6), "a fresh LoRA is the base model"
    assert abs(found[-1]["loss"] / found[-1]["base"] - 1) > 1e-3, "training is not seen"
    more = {**settings, "steps": 1, "ema_decay": 0.0, "optimizer": "AdamW"}
    again = train(checkpoint, dataset, tmp_path, cache, held(dataset=others), watched.lora, **more).summary.held_out
    assert again[0]["loss"] == pytest.approx(found[-1]["loss"], rel=1e-5)
    assert again[0]["base"] == found[0]["base"]


def test_it_falls_on_what_is_overfitted_and_is_the_same_in_equal_runs(checkpoint, dataset, cache, tmp_path) -> None:
    """The loss of training steps jumps by its draws; at fixed inputs every measurement says what is learned."""
    settings = {"steps": 16, "learning_rate": 3e-3, "scheduler": "constant"}
    first, second = (
        train(checkpoint, dataset, tmp_path, cache, held(8, dataset=dataset), **settings) for _ in range(2)
    )
    losses, again = ([line["loss"] for line in run.summary.held_out] for run in (first, second))
    assert losses == pytest.approx(again, abs=1e-6)
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.98 * losses[0], losses
    steps = first.summary.losses
    assert steps != sorted(steps, reverse=True)
    assert "3 held-out pictures are trained too" in " ".join(first.summary.hints)


def test_a_share_is_not_trained_and_is_in_the_file_and_the_log(checkpoint, dataset, others, cache, tmp_path) -> None:
    import json

    from lora_workbench.training.data.mixing import concat

    both = concat([dataset, others])
    result = train(checkpoint, both, tmp_path, cache, held(0, share=0.4), steps=0, epochs=2, batch_size=1)
    assert result.summary.steps == 6, "one of three and one of two pictures are held out"
    rows = [json.loads(row) for row in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    lines = [row for row in rows if row["kind"] == "held_out"]
    assert [line["step"] for line in lines] == [0, 3, 6]
    last = lines[-1]
    assert set(last["concepts"]) == {"1_photo", "1_other"}
    assert last["loss"] == pytest.approx(sum(part["loss"] for part in last["concepts"].values()) / 2)
    assert {"kind": "held_out", **result.summary.held_out[-1]} == last
    metadata = result.lora.metadata
    assert float(metadata["lora_workbench.held_out_loss"]) == last["loss"]
    assert float(metadata["lora_workbench.held_out_base"]) == last["base"]
    assert metadata["lora_workbench.held_out_step"] == "6"
    assert metadata["ss_num_train_images"] == "3" and "ss_num_validation_images" not in metadata


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("of the device"), float("nan")], ids=["memory", "nan"])
def test_a_failure_costs_the_measurement(error, checkpoint, dataset, others, cache, tmp_path, monkeypatch) -> None:
    from lora_workbench.training.held_out import HeldOutLoss

    real, asked = HeldOutLoss._loss, []

    def fails(self, *args):
        asked.append(args)
        if len(asked) <= 4:
            return real(self, *args)
        if isinstance(error, float):
            return torch.tensor(error)
        raise error

    plain = train(checkpoint, dataset, tmp_path, cache)
    monkeypatch.setattr(HeldOutLoss, "_loss", fails)
    result = train(checkpoint, dataset, tmp_path, cache, held(dataset=others))
    assert all(torch.equal(plain.lora[name], tensor) for name, tensor in result.lora.items())
    assert [line["step"] for line in result.summary.held_out] == [0]
    (hint,) = [hint for hint in result.summary.hints if "not measured from step 1 on" in hint]
    assert ("out of memory. Hold out smaller pictures." in hint) == (not isinstance(error, float))


def test_it_is_cancelled_between_two_pictures(checkpoint, dataset, others, cache, tmp_path) -> None:
    from lora_workbench.training.config import TrainConfig
    from lora_workbench.training.events import SilentSink
    from lora_workbench.training.train import is_cancel, train_lora
    from lora_workbench.training.watch import Watch

    class Sink(SilentSink):
        has_begun = False

        def phase(self, text: str, done: int, total: int) -> None:
            self.has_begun = self.has_begun or (text.startswith("measuring") and done == 1)

        def cancelled(self) -> bool:
            return self.has_begun

    with torch.inference_mode(), pytest.raises(BaseException) as raised:
        train_lora(
            *checkpoint, dataset, TrainConfig(steps=1, rank=4), root=tmp_path, cache_root=cache, sink=Sink(),
            watch=Watch(held_out=held(dataset=others)),
        )  # fmt: skip
    assert is_cancel(raised.value) and not list(tmp_path.iterdir())


def test_an_estimate_holds_out_the_same(checkpoint, dataset, cache, tmp_path) -> None:
    from lora_workbench.training.config import TrainConfig
    from lora_workbench.training.errors import UserError
    from lora_workbench.training.estimate import estimate
    from lora_workbench.training.events import SilentSink

    def steps(held_out: Any) -> int:
        config = TrainConfig(epochs=2, rank=4)
        with torch.inference_mode():
            return estimate(
                *checkpoint, dataset, config, cache_root=cache, sink=SilentSink(), held_out=held_out
            ).steps

    assert (steps(None), steps(held(share=0.34))) == (6, 4)
    from dataclasses import replace

    bare = dataset.with_pictures(replace(picture, placement=None) for picture in dataset.pictures)
    with pytest.raises(UserError, match="Held-out Pictures has no buckets yet"):
        steps(held(dataset=bare))


def test_levels_stand_for_the_distribution(comfy_host) -> None:
    from lora_workbench.training.draws import generator
    from lora_workbench.training.noise_levels import NoiseLevels
    from lora_workbench.training.options import LossOptions

    table = torch.arange(1, 1001) / 1000
    for kind, options in (("uniform", {}), ("logit-normal", {"timestep_mean": 0.5}), ("mode", {"min_timestep": 200})):
        levels = NoiseLevels(table, True, 1.0, kind, LossOptions(**options))
        drawn, _ = levels.draw(80_000, 256, generator(0, "timestep", 0))
        parts = drawn.sort().values.view(8, -1)
        strata = levels.strata(8, 256)
        assert torch.allclose(strata, parts.median(1).values, atol=0.02), (kind, strata, parts.median(1).values)
