"""The average of the weights (EMA): what it is, that training does not notice it, and that it is what is saved."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.photos import write_photos
from support.rig import rig, trained
from support.session import AGAIN

DECAY = 0.7  # above the warm-up of the first steps: (1 + n) / (10 + n) passes it at n = 20


def expected(weights: list[torch.Tensor], decay: float) -> torch.Tensor:
    """The average of weights W_0, W_1, …, in fp64."""
    mean = weights[0].double()
    for n, weight in enumerate(weights[1:], 1):
        kept = min(decay, (1 + n) / (10 + n))
        mean = kept * mean + (1 - kept) * weight.double()
    return mean


def shown(run: Any) -> torch.Tensor:
    """The weights that would be saved."""
    with run.weights_to_keep():
        return run.network.flat.master.clone()


class Watched:
    """Notes the weights and what would be saved after each step."""

    def __init__(self) -> None:
        self.weights: list[torch.Tensor] = []
        self.saved: list[torch.Tensor] = []

    def __call__(self, run: Any, _ended: bool) -> None:
        self.weights.append(run.network.flat.master.clone())
        self.saved.append(shown(run))
        assert torch.equal(run.network.flat.master, self.weights[-1]), "looking at the average changed the weights"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", ["AdamW", "Lion", "Adafactor"])
def test_it_is_the_running_average_of_the_steps(
    optimizer: str, precision: str, comfy_host: Any, small_models_folder: Path, tmp_path: Path
) -> None:
    if optimizer != "AdamW":
        pytest.importorskip("pytorch_optimizer", reason=f"the package with {optimizer} is not installed")
    note = Watched()
    settings = {"steps": 25, "optimizer": optimizer, "ema_decay": DECAY, "precision": precision}
    with rig("sd3", small_models_folder, tmp_path, **settings, after_step=note) as it:
        start = it.network.flat.master.clone()
        it.train()
    for n in range(1, 26):
        assert torch.allclose(note.saved[n - 1].double(), expected([start, *note.weights[:n]], DECAY), atol=1e-6), n
    assert not torch.allclose(note.saved[-1], note.weights[-1], atol=1e-4)


@pytest.mark.parametrize("optimizer", ["AdamW", "Lion"])
def test_training_does_not_notice_it(
    optimizer: str, comfy_host: Any, small_models_folder: Path, tmp_path: Path
) -> None:
    settings = {"steps": 6, "optimizer": optimizer}
    plain = trained("sd3", small_models_folder, tmp_path, **settings)
    averaged = trained("sd3", small_models_folder, tmp_path, **settings, ema_decay=0.999, after_step=Watched())
    assert all(torch.equal(one, other) for one, other in zip(plain, averaged, strict=True))


@pytest.mark.parametrize("optimizer", ["AdamW", "Lion"])
def test_steps_that_are_left_out_do_not_move_it(
    optimizer: str, comfy_host: Any, small_models_folder: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """fp16 begins with steps that overflow: the average counts the others alone."""
    from lora_workbench.training import guard

    monkeypatch.setattr(guard, "_FIRST_SCALE", 2.0**30)
    note = Watched()
    settings = {"steps": 24, "precision": "fp16", "optimizer": optimizer, "ema_decay": DECAY, "after_step": note}
    with rig("sd3", small_models_folder, tmp_path, **settings) as it:
        start = it.network.flat.master.clone()
        it.train()
    moved = [start]
    for weight in note.weights:
        if not torch.equal(weight, moved[-1]):
            moved.append(weight)
    assert 5 < len(moved) < 23, "no step was left out"
    assert torch.allclose(note.saved[-1].double(), expected(moved, DECAY), atol=1e-6)
    assert torch.equal(note.saved[1], start)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("optimizer", ["AdamW", "Lion"])
def test_after_a_divergence_it_is_that_of_the_last_good_weights(
    optimizer: str, late: bool, comfy_host: Any, small_models_folder: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    from lora_workbench.training.late import Late
    from lora_workbench.training.run.state import Diverged

    if late:
        monkeypatch.setattr(Late, "has_arrived", property(lambda self: False))
    note = Watched()

    def overflow_after_five(run: Any, ended: bool) -> None:
        if run.step == 5:
            run.network.flat.master.fill_(math.inf)
        note(run, ended)

    settings = {"steps": 12, "optimizer": optimizer, "ema_decay": DECAY, "after_step": overflow_after_five}
    with rig("sd3", small_models_folder, tmp_path, **settings) as it:
        start = it.network.flat.master.clone()
        with pytest.raises(Diverged, match="step 6"):
            it.train()
        assert it.run.step == 4
        assert torch.equal(it.network.flat.master, note.weights[3])
        left = shown(it.run)
    assert torch.allclose(left.double(), expected([start, *note.weights[:4]], DECAY), atol=1e-6)


@pytest.mark.parametrize("optimizer", ["AdamW", "Lion"])
def test_an_update_that_failed_and_is_done_again_counts_once(
    optimizer: str, comfy_host: Any, small_models_folder: Path, tmp_path: Path
) -> None:
    settings = {"steps": 6, "optimizer": optimizer, "ema_decay": DECAY}
    note, failed = Watched(), []
    with rig("sd3", small_models_folder, tmp_path, **settings, after_step=note) as it:
        real = it.run.optimizer.step

        def step(*args: Any) -> Any:
            if it.run.step == 3 and not failed:
                failed.append(it.run.step)
                it.network.flat.master.view(-1)[0] = math.nan
                raise torch.OutOfMemoryError("as a device says it")
            return real(*args)

        it.run.optimizer.step = step
        start = it.network.flat.master.clone()
        it.train()
    assert failed == [3]
    assert torch.allclose(note.saved[-1].double(), expected([start, *note.weights], DECAY), atol=1e-6)


def test_it_goes_on_when_the_optimizers_state_goes_to_eight_bits(
    comfy_host: Any, small_models_folder: Path, tmp_path: Path
) -> None:
    """So do the optimizer's arguments."""
    from dataclasses import replace

    pytest.importorskip("bitsandbytes", reason="the package with the 8-bit optimizers is not installed")
    note = Watched()

    def change(run: Any, ended: bool) -> None:
        note(run, ended)
        if run.step == 3:
            run.change_optimizer(replace(it.setup.plan.config, optimizer="AdamW8bit"))
            assert torch.equal(shown(run), note.saved[-1])

    settings = {"steps": 8, "ema_decay": DECAY, "beta2": 0.95, "eps": 1e-6, "after_step": change}
    with rig("sd3", small_models_folder, tmp_path, **settings) as it:
        start = it.network.flat.master.clone()
        it.train()
        assert it.run.optimizer_name == "AdamW8bit"
        for group in it.run.optimizer.param_groups:
            assert (tuple(group["betas"])[:2], group["eps"]) == ((0.9, 0.95), 1e-6)
    assert torch.allclose(note.saved[-1].double(), expected([start, *note.weights], DECAY), atol=1e-6)


# -- whole runs: what is saved -------------------------------------------------------------------


@pytest.fixture(scope="module")
def parts(comfy_host: Any, tiny_checkpoint: Path, tmp_path_factory: Any) -> tuple[Any, ...]:
    """MODEL, CLIP and VAE of the small SD1.5 checkpoint, and a dataset."""
    import comfy.sd
    from lora_workbench.training.data.buckets import BucketConfig, assign_buckets
    from lora_workbench.training.data.scan import scan_folder

    folder = tmp_path_factory.mktemp("data") / "1_photo"
    folder.mkdir()
    write_photos(folder, longest=256)
    dataset = assign_buckets(scan_folder(folder, trigger="zorp"), BucketConfig(resolution=128, step=32))
    with torch.inference_mode():
        return *comfy.sd.load_checkpoint_guess_config(str(tiny_checkpoint))[:3], dataset


class CancelsAfter:
    """A sink that presses cancel when so many steps are done."""

    def __init__(self, steps: int) -> None:
        self.steps, self.done = steps, 0

    def phase(self, text: str, done: int, total: int) -> None: ...
    def record(self, *_: Any) -> None: ...
    def tell(self, text: str) -> None: ...
    def hint(self, text: str) -> None: ...
    def take_cancel(self) -> None: ...

    def step(self, event: Any) -> None:
        self.done = event.step

    def cancelled(self) -> bool:
        return self.done >= self.steps


def whole_run(parts: tuple[Any, ...], folder: Path, sink: Any = None, **settings: Any) -> Any:
    from lora_workbench.training.config import TrainConfig
    from lora_workbench.training.events import SilentSink
    from lora_workbench.training.train import train_lora

    config = TrainConfig(name="run", rank=4, learning_rate=1e-2, precision="fp32", **{"steps": 5, **AGAIN, **settings})
    with torch.inference_mode():
        return train_lora(
            *parts, config, root=folder / "runs", cache_root=folder / "cache", sink=sink or SilentSink()
        )


@pytest.fixture(scope="module")
def files(parts: Any, tmp_path_factory: Any) -> list[dict[str, torch.Tensor]]:
    """The LoRA after each step of a run without an average."""
    folder = tmp_path_factory.mktemp("plain")
    result = whole_run(parts, folder, save_every_steps=1)
    return [*(load_file(file) for file in result.summary.checkpoints), dict(result.lora)]


def is_average(tensors: dict[str, torch.Tensor], files: list[dict[str, torch.Tensor]], steps: int) -> bool:
    """Whether a LoRA's `up` matrices, which start at zero, are the average over these steps."""
    ups = [name for name in tensors if name.endswith("lora_up.weight")]
    assert len(ups) > 10 and len(files) == 5
    return all(
        torch.allclose(
            tensors[name].double(),
            expected([torch.zeros_like(tensors[name]), *(file[name] for file in files[:steps])], DECAY),
            atol=1e-7,
        )
        for name in ups
    )


def test_what_is_saved_and_handed_on_is_the_average(parts: Any, files: Any, tmp_path: Path) -> None:
    result = whole_run(parts, tmp_path, ema_decay=DECAY, save_every_steps=2)
    assert is_average(dict(result.lora), files, 5)
    assert is_average(load_file(tmp_path / "runs" / "run" / "run.safetensors"), files, 5)
    for file, steps in zip(result.summary.checkpoints, (2, 4), strict=True):
        assert is_average(load_file(file), files, steps)
    assert not is_average(files[-1], files, 5)
    assert result.lora.metadata["lora_workbench.ema_decay"] == "0.7"


def test_a_cancelled_run_hands_on_the_average(parts: Any, files: Any, tmp_path: Path) -> None:
    result = whole_run(parts, tmp_path, CancelsAfter(3), ema_decay=DECAY)
    assert result.summary.outcome == "cancelled" and 3 <= result.summary.steps < 5
    assert is_average(dict(result.lora), files, result.summary.steps)


def test_a_run_that_breaks_off_keeps_the_average(parts: Any, files: Any, tmp_path: Path, monkeypatch: Any) -> None:
    from lora_workbench.training import loop

    real = loop.optimizer_step

    def breaks(setup: Any, run: Any, *more: Any) -> None:
        if run.step == 3:
            raise MemoryError("in the middle")
        real(setup, run, *more)

    monkeypatch.setattr(loop, "optimizer_step", breaks)
    with pytest.raises(MemoryError):
        whole_run(parts, tmp_path, ema_decay=DECAY)
    assert is_average(load_file(tmp_path / "runs" / "run" / "run-last-good.safetensors"), files, 3)
