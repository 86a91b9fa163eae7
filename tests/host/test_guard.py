"""What is not finite: told apart, undone, or none of the run's business; and what a rehearsal finds."""

from __future__ import annotations

import math
from typing import Any
from unittest import mock

import pytest
import torch
from support import small_models
from support.rig import Rig, Snapshot, rig, sample, trained_tensors
from torch import nn

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


@pytest.mark.parametrize("name", ["sd3", "zimage"])
def test_fp16_changes_little(name: str, comfy_host: Any, small_models_folder: Any, tmp_path: Any) -> None:
    losses = []
    for precision in ("fp32", "fp16"):
        with rig(name, small_models_folder, tmp_path / precision, steps=4, precision=precision) as it:
            losses.append(it.train().losses)
            total = it.network.flat.total
            assert total.isfinite().all() and total.any()
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


# -- the model is given back and taken again --------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("sd15", {"precision": "bf16", "dropout": 0.2}),
        ("flux", {"precision": "bf16", "gradient_checkpointing": True}),
        ("zimage", {"precision": "fp32", "optimizer": "ScheduleFreeAdamW"}),
    ],
)
def test_the_model_is_given_back_in_mid_run(
    name: str, settings: Any, comfy_host: Any, small_models_folder: Any, tmp_path: Any
) -> None:
    """Sampled with, unloaded, another loaded: what is trained is the same bit for bit."""
    import comfy.model_management as management

    if "optimizer" in settings:
        pytest.importorskip("pytorch_optimizer", reason="the package with ScheduleFreeAdamW is not installed")
    settings = {**settings, "epochs": 3}
    with rig(name, small_models_folder, tmp_path / "plain", **settings) as it:
        expected = it.train().losses, [tensor.clone() for tensor in trained_tensors(it.network)]
    patcher = small_models.build(name, small_models_folder)
    first, before = sample(patcher, name), Snapshot(patcher)
    other = small_models.build("sd3", small_models_folder)
    left = []
    with rig(name, small_models_folder, tmp_path / "left", patcher=patcher, **settings) as it:

        def leave(run: Any, _ended: bool) -> None:
            if run.step not in (1, 2, 4):
                return
            with it.left():
                assert before.differences(Snapshot(patcher)) == []
                assert torch.equal(first, sample(patcher, name))
                with torch.inference_mode():
                    management.load_models_gpu([other])
                    management.unload_all_models()
            left.append(run.step)

        it.after_step = leave
        got = it.train().losses, [tensor.clone() for tensor in trained_tensors(it.network)]
    assert left == [1, 2, 4]
    assert got[0] == expected[0]
    assert all(torch.equal(one, other) for one, other in zip(got[1], expected[1], strict=True))
    assert torch.equal(first, sample(patcher, name))


# -- the rehearsal ----------------------------------------------------------------------------------


def test_copies_are_given_up_where_there_is_no_memory_for_them(
    comfy_host: Any, small_models_folder: Any, tmp_path: Any
) -> None:
    from lora_workbench.training import preflight

    settings = {"precision": "bf16", "steps": 2}
    with rig("sd15", small_models_folder, tmp_path / "copies", **settings) as it:
        assert it.made.copies > 0
        expected = it.train().losses
    real, tried = preflight.training_step, []

    def no_memory(*args: Any) -> Any:
        tried.append(args)
        if len(tried) == 1:
            raise torch.OutOfMemoryError("out of memory")
        return real(*args)

    with (
        mock.patch.object(preflight, "training_step", no_memory),
        rig("sd15", small_models_folder, tmp_path / "none", **settings) as it,
    ):
        assert it.made.copies == 0 and len(tried) == 2
        assert it.train().losses == pytest.approx(expected, rel=1e-2)


class Once(nn.Module):
    """A block whose layer is doubled in place after what needs it, or that computes something else each time."""

    def __init__(self, kind: str) -> None:
        import comfy.ops

        super().__init__()
        self.kind, self.calls = kind, 0
        with torch.inference_mode():
            self.proj = comfy.ops.manual_cast.Linear(4, 4, dtype=torch.float32)
            self.proj.weight = nn.Parameter(torch.eye(4), requires_grad=False)
            self.proj.bias = nn.Parameter(torch.zeros(4), requires_grad=False)

    def forward(self, x: Any) -> Any:
        y = self.proj(x).sigmoid()
        self.calls += 1
        return y.mul_(2) if self.kind == "in place" else y * self.calls


@pytest.mark.parametrize(
    ("kind", "checkpointing", "said"),
    [
        ("in place", False, r"This MODEL \(Module\) changes values in place"),
        ("in place", True, r"This MODEL \(Module\) changes values in place"),
        ("another", True, r"the gradients of a block \(Once\) are off by .*Turn gradient_checkpointing off"),
        ("another", False, None),
    ],
)
def test_a_model_whose_gradients_would_be_wrong_is_refused(
    kind: str, checkpointing: bool, said: str | None, comfy_host: Any
) -> None:
    from lora_workbench.training.adapters.lora import LoraAdapter
    from lora_workbench.training.adapters.network import Network
    from lora_workbench.training.errors import UserError
    from lora_workbench.training.host.frozen import Differentiable

    model = nn.Module()
    model.manual_cast_dtype, model.diffusion_model = None, nn.Module()
    model.diffusion_model.blocks = nn.ModuleList([Once(kind)])
    cpu = torch.device("cpu")
    network = Network([LoraAdapter("blocks.0.proj", torch.ones(1, 4), torch.ones(4, 1), 1.0, 0.0)], torch.float32, cpu)
    made = Differentiable(
        model, network, dtype=torch.float32, device=cpu, checkpointing=checkpointing, copies=0
    )  # fmt: skip
    with made.entered():

        def step() -> None:
            model.diffusion_model.blocks[0](torch.ones(2, 4)).sum().backward()

        if said is None:
            made.rehearse(step)
        else:
            with pytest.raises(UserError, match=said):
                made.rehearse(step)
        assert "forward" in vars(model.diffusion_model.blocks[0].proj)
    assert "forward" not in vars(model.diffusion_model.blocks[0].proj)


def test_what_is_not_finite_in_both_is_no_difference(comfy_host: Any) -> None:
    from lora_workbench.training.host.recompute import _apart

    plain = torch.tensor([1.0, math.inf, -4.0, math.nan])
    assert _apart(plain, torch.tensor([1.0, math.nan, -4.0, math.inf])) == 0
    assert _apart(plain, torch.tensor([1.0, math.inf, -3.0, math.nan])) == 0.25
    assert _apart(plain, torch.tensor([1.0, 2.0, -4.0, math.nan])) == math.inf


def test_tensors_of_other_layers_come_to_the_device(comfy_host: Any) -> None:
    """The host may leave a norm on the CPU and cast it for each use: backward would need what it cast."""
    import comfy.ops
    from lora_workbench.training.host.frozen import _swap_tensors, _Undo

    device = torch.device("meta")
    with torch.inference_mode():
        norm = comfy.ops.manual_cast.LayerNorm(4, dtype=torch.float16)
    with _Undo() as undo:
        _swap_tensors(undo, norm, torch.bfloat16, device)
        assert {(p.device, p.dtype) for p in norm.parameters()} == {(device, torch.bfloat16)}
    assert norm.weight.device.type == "cpu" and norm.weight.dtype == torch.float16


def test_nothing_is_copied_off_the_device_for_a_condition(
    comfy_host: Any, small_models_folder: Any, tmp_path: Any
) -> None:
    """SDXL puts its sizes together with the text's vector, on the processor."""
    from lora_workbench.lab.bench.counting import Calls

    with rig("sdxl", small_models_folder, tmp_path, pictures=1, batch_size=1) as it:
        shape = small_models.latent_shape("sdxl", 16, 16)
        it.model.device = torch.device("meta")
        with Calls() as counted:
            conds = it.model.conditions(small_models.conditioning("sdxl"), torch.empty(shape, device="meta"), {})
    assert {cond.cond.device.type for cond in conds.values()} == {"meta"}
    assert counted.waits == 0 and {"y", "c_crossattn"} <= set(conds)
