"""What is not finite: its cause is named and it is undone, unless it is an overflow that fp16 allows for."""

from __future__ import annotations

import math
from typing import Any
from unittest import mock

import pytest
import torch
from support import small_models
from support.rig import Rig, rig, trained_tensors

# Each plants a NaN in one place, from a step on.


def in_the_latents(it: Rig, _step: int) -> None:
    shape = small_models.latent_shape("sd3", 16, 16)
    put(it.setup.latents.cache, "latent1", {"latent": torch.full(shape, math.nan)})


def in_the_text(it: Rig, _step: int) -> None:
    tensors, note = it.setup.captions.cache.get("caption1")
    name = next(iter(tensors))
    put(it.setup.captions.cache, "caption1", {**tensors, name: torch.full_like(tensors[name], math.nan)}, note)


def put(cache: Any, *entry: Any) -> None:
    """Store an entry that went wrong on the disk."""
    from lora_workbench.training.cache import store

    with mock.patch.object(store, "is_finite", lambda _tensor: True):
        cache.put(*entry)


def in_the_output(it: Rig, step: int) -> None:
    real = it.model.denoised
    it.model.denoised = lambda *args: real(*args) * (math.nan if it.run.step >= step - 1 else 1)


def in_the_gradient(it: Rig, step: int) -> None:
    real, first = it.network.flat.add_up, it.network.flat.views[0]

    def add_up(loss_scale: Any = None) -> None:
        real(loss_scale)
        if it.run.step >= step - 1:
            first.total.fill_(math.inf)

    it.network.flat.add_up = add_up


@pytest.mark.parametrize(
    ("plant", "step", "said"),
    [
        (in_the_latents, 1, r"step 1: the latents of 1\.png hold.*Delete the folder .*latents"),
        (in_the_text, 1, r"step 1: the encoded caption of 1\.png: 'c1' holds.*Delete the folder .*captions"),
        (in_the_output, 1, r"step 1: the MODEL's output for .*\.png is not.*not the learning rate.*Load another file"),
        (in_the_output, 3, r"step 3: the MODEL's output for .*\.png is not.*learning rate 0\.001.*to a tenth\.$"),
        (in_the_gradient, 3, r"step 3: the gradient for .*\.png is not.*learning rate 0\.001.*to a tenth\.$"),
    ],
)
def test_four_sentences(
    plant: Any, step: int, said: str, comfy_host: Any, small_models_folder: Any, tmp_path: Any
) -> None:
    from lora_workbench.training.run.state import Diverged

    with rig("sd3", small_models_folder, tmp_path, pictures=2, epochs=6) as it:
        plant(it, step)
        with pytest.raises(Diverged, match=said):
            it.train()


@pytest.mark.parametrize("optimizer", ["AdamW", "Lion"])
@pytest.mark.parametrize("plant", [in_the_output, in_the_gradient])
def test_what_is_found_late_is_undone_exactly(
    plant: Any, optimizer: str, comfy_host: Any, small_models_folder: Any, tmp_path: Any, monkeypatch: Any
) -> None:
    """As on a GPU, where losses are read steps later: the weights are those of the last step with a good loss."""
    from lora_workbench.training.late import Late
    from lora_workbench.training.run.state import Diverged

    if optimizer == "Lion":
        pytest.importorskip("pytorch_optimizer", reason="the package with Lion is not installed")
    monkeypatch.setattr(Late, "has_arrived", property(lambda self: False))
    weights: dict[int, list[torch.Tensor]] = {}

    def note(run: Any, _ended: bool) -> None:
        weights[run.step] = [tensor.clone() for tensor in trained_tensors(run.network)]

    with rig("sd3", small_models_folder, tmp_path, pictures=40, after_step=note, optimizer=optimizer) as it:
        plant(it, 5)
        with pytest.raises(Diverged, match="step 5"):
            it.train()
        left = [tensor.clone() for tensor in trained_tensors(it.network)]
        assert max(weights) > 6, "found at once"
        assert it.run.step == 3 == len(it.run.losses) == len(it.run.rates) == it.run.micro_step == it.run.position
        assert it.run.images == 6
    assert all(torch.equal(one, other) for one, other in zip(left, weights[3], strict=True))
    assert all(torch.equal(one, other) for one, other in zip(weights[4], weights[7], strict=True)), "a step went on"
    assert not torch.equal(weights[3][0], weights[4][0])


@pytest.mark.parametrize("optimizer", ["AdamW", "Lion"])
def test_a_gradient_that_stays_too_large_for_fp16_is_a_divergence(
    optimizer: str, comfy_host: Any, small_models_folder: Any, tmp_path: Any
) -> None:
    from lora_workbench.training.run.state import Diverged

    if optimizer == "Lion":
        pytest.importorskip("pytorch_optimizer", reason="the package with Lion is not installed")
    settings = {"precision": "fp16", "steps": 40, "optimizer": optimizer}
    with rig("sd3", small_models_folder, tmp_path, **settings) as it:
        in_the_gradient(it, 4)
        with pytest.raises(Diverged, match=r"step \d+: the gradient for .*\.png is not.*set precision to fp32"):
            it.train()
        assert 10 < it.run.step < 30
        assert all(tensor.isfinite().all() for tensor in trained_tensors(it.network))


def test_a_run_cancelled_before_its_failure_was_read(
    comfy_host: Any, small_models_folder: Any, tmp_path: Any, monkeypatch: Any
) -> None:
    """The weights are restored and the failure is reported, although the cancel came first."""
    from lora_workbench.training.events import Cancelled
    from lora_workbench.training.late import Late
    from lora_workbench.training.run.state import Diverged

    monkeypatch.setattr(Late, "has_arrived", property(lambda self: False))

    def cancel(run: Any, _ended: bool) -> None:
        if run.step == 6:
            raise Cancelled

    with rig("sd3", small_models_folder, tmp_path, pictures=40, after_step=cancel) as it:
        in_the_output(it, 5)
        with pytest.raises(Diverged, match="step 5"):
            it.train()
        assert it.run.step == 3 == len(it.run.losses)


def test_an_overflow_of_fp16_is_no_divergence(
    comfy_host: Any, small_models_folder: Any, tmp_path: Any, monkeypatch: Any
) -> None:
    """The loss's scale begins far too high: steps are left out until it fits, and the run goes on."""
    from lora_workbench.training import guard

    weights = []

    def note(run: Any, _ended: bool) -> None:
        weights.append(run.network.flat.master.clone())

    monkeypatch.setattr(guard, "_FIRST_SCALE", 2.0**30)
    settings = {"precision": "fp16", "steps": 24, "after_step": note}
    with rig("sd3", small_models_folder, tmp_path, **settings) as it:
        run = it.train()
        assert it.setup.precision == torch.float16
    moved = [not torch.equal(one, other) for one, other in zip(weights, weights[1:], strict=False)]
    assert moved[:3] == [False] * 3 and moved[-3:] == [True] * 3
    assert run.step == 24 and all(map(math.isfinite, run.losses))
