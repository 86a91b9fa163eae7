"""What the loop promises: the same numbers each time, a clean cancel, a stop at the first number that is none."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from support import small_models
from support.rig import Snapshot, rig, sample, trained, trained_tensors

OPTIMIZERS = ["AdamW", "AdamW8bit", "Lion", "Lion8bit", "Prodigy", "Adafactor", "CAME", "ScheduleFreeAdamW"]


class CancelAfter:
    """A sink on which cancel is pressed after some micro-steps."""

    def __init__(self, polls: int) -> None:
        self.left, self.taken = polls, False

    def phase(self, text, done, total):
        pass

    def record(self, *_):
        pass

    def step(self, event):
        pass

    def tell(self, text):
        pass

    def cancelled(self):
        self.left -= 1
        return self.left < 0

    def take_cancel(self):
        self.taken = True


@pytest.mark.parametrize("name", ["sd15", "sd3"])
def test_same_seed_same_bits(name, comfy_host, small_models_folder, tmp_path):
    settings = {"epochs": 2, "dropout": 0.2, "batch_size": 2}
    first = trained(name, small_models_folder, tmp_path, **settings)
    torch.randn(10)  # whatever other nodes draw in between
    again = trained(name, small_models_folder, tmp_path, **settings)
    other = trained(name, small_models_folder, tmp_path, **settings, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_the_global_generator_is_left_alone(comfy_host, small_models_folder, tmp_path):
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    trained("sd3", small_models_folder, tmp_path, epochs=1, dropout=0.2, gradient_checkpointing=True)
    assert torch.equal(torch.randn(3), expected)


def test_one_feature_does_not_shift_anothers_draws(comfy_host, small_models_folder, tmp_path):
    drawn = []
    for settings in ({}, {"dropout": 0.5}):
        with rig("sd3", small_models_folder, tmp_path, **settings) as it:
            micro = it.prepare()
            downs = [layer.down.master for layer in it.network.adapters]
            drawn.append((micro.drawn.noise, micro.drawn.sigma, micro.names, downs))
    assert torch.equal(drawn[0][0], drawn[1][0]) and torch.equal(drawn[0][1], drawn[1][1])
    assert drawn[0][2] == drawn[1][2]
    assert all(torch.equal(a, b) for a, b in zip(drawn[0][3], drawn[1][3], strict=True))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_lowers_the_loss(optimizer, comfy_host, small_models_folder, tmp_path):
    from lora_workbench.training.optimizers import weights_to_keep

    rate = {"Prodigy": 1.0, "Lion": 3e-4, "Lion8bit": 3e-4, "ScheduleFreeAdamW": 5e-3}.get(optimizer, 2e-3)
    steps = 200 if optimizer == "Prodigy" else 60  # it first has to find its rate, from 1e-6 up
    settings = {"optimizer": optimizer, "learning_rate": rate, "steps": steps, "rank": 32, "scheduler": "constant"}
    with rig("sd3", small_models_folder, tmp_path, pictures=2, **settings) as it:

        def mean_loss() -> float:
            from lora_workbench.training.objective import Draw

            micro, total = it.prepare(), 0.0
            for level in (0.2, 0.5, 0.8):
                drawn = Draw(micro.drawn.noise, torch.full_like(micro.drawn.sigma, level))
                total += float(it.step(micro=replace(micro, drawn=drawn)).losses.sum())
            for parameter in trained_tensors(it.network):
                parameter.grad = None
            return total

        before = mean_loss()
        run = it.train()
        run.micro_step = 0
        with weights_to_keep(run.optimizer):
            after = mean_loss()
        states = [value for state in run.optimizer.state.values() for value in state.values()]
    assert after < before * 0.99, (before, after)
    if optimizer.endswith("8bit"):
        # Small tensors keep fp32 moments; those of a real model's layers are bytes.
        assert any(isinstance(value, torch.Tensor) and value.dtype == torch.uint8 for value in states)


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        ("constant", [1, 1, 1, 1]),
        ("constant_with_warmup", [1, 1, 1, 1]),
        ("linear", [1, 0.75, 0.5, 0.25]),
        ("cosine", [(1 + math.cos(math.pi * x / 4)) / 2 for x in range(4)]),
        ("cosine_with_restarts", [1, 0.5, 1, 0.5]),
        ("polynomial", [1, 0.5625, 0.25, 0.0625]),
        ("rex", [(1 - x / 4) / (0.5 + 0.5 * (1 - x / 4)) for x in range(4)]),
    ],
)
def test_schedules(scheduler, expected, comfy_host, small_models_folder, tmp_path):
    settings = {"steps": 4, "learning_rate": 1e-3, "scheduler": scheduler}
    with rig("sd3", small_models_folder, tmp_path, **settings) as it:
        rates = it.train().rates
    assert rates == pytest.approx([1e-3 * share for share in expected])


@pytest.mark.parametrize("scheduler", ["constant_with_warmup", "linear", "cosine", "rex"])
def test_warm_up_rises_from_zero(scheduler, comfy_host, small_models_folder, tmp_path):
    settings = {"steps": 8, "warmup_steps": 4, "learning_rate": 1e-3, "scheduler": scheduler}
    with rig("sd3", small_models_folder, tmp_path, **settings) as it:
        rates = it.train().rates
    assert rates[:5] == pytest.approx([0, 2.5e-4, 5e-4, 7.5e-4, 1e-3])


def test_short_batches_count_each_picture_the_same(comfy_host, small_models_folder, tmp_path):
    """Three pictures in batches of two: the gradient of the epoch is that of the three pictures, each once."""
    gradients = []
    for batch_size, accumulation in ((2, 2), (3, 1), (1, 3)):
        settings = {"batch_size": batch_size, "gradient_accumulation": accumulation, "max_grad_norm": 0.0}
        with rig("sd3", small_models_folder, tmp_path, pictures=3, **settings) as it:
            noise = torch.randn(small_models.latent_shape("sd3", 16, 16), generator=torch.Generator().manual_seed(1))
            (step,) = it.steps()
            for batch in step:
                it.step(batch, fixed(it.prepare(batch), noise))
            gradients.append([layer.up.total.clone() for layer in it.network.adapters])
    for other in gradients[1:]:
        assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-6) for a, b in zip(gradients[0], other, strict=True))


def fixed(micro, noise):
    """Each picture with the same noise and noise level whatever batch it is in."""
    from lora_workbench.training.objective import Draw

    same = noise.expand(len(micro.x0), *noise.shape[1:]).clone().to(micro.x0.device)
    return replace(micro, drawn=Draw(same, torch.full_like(micro.drawn.sigma, 0.5)))


def test_accumulation_across_short_steps(comfy_host, small_models_folder, tmp_path):
    with rig("sd3", small_models_folder, tmp_path, pictures=5, batch_size=2, gradient_accumulation=2, epochs=2) as it:
        run = it.train()
    assert (run.step, run.images, run.micro_step) == (4, 10, 6)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_loop_can_be_left_and_entered_again(precision, comfy_host, small_models_folder, tmp_path, monkeypatch):
    """Between any two steps: within an epoch, at its end, with dropout, a schedule and fp16's scale under way."""
    from lora_workbench.training import guard

    monkeypatch.setattr(guard, "_GROWS_AFTER", 2)

    class Left(Exception):
        pass

    def leave(run, _ended):
        if run.step in (1, 3, 4):
            raise Left

    settings = {"pictures": 5, "epochs": 3, "dropout": 0.2, "batch_size": 2, "warmup_steps": 2, "precision": precision}
    with rig("sd3", small_models_folder, tmp_path, **settings) as it:
        plain, weights = it.train(), [tensor.detach().clone() for tensor in trained_tensors(it.network)]
    with rig("sd3", small_models_folder, tmp_path, **settings, after_step=leave) as it:
        for _ in range(3):
            with pytest.raises(Left):
                it.train()
        again = it.train()
    assert all(torch.equal(a, b) for a, b in zip(weights, trained_tensors(again.network), strict=True))
    assert again.step == plain.step == 9
    for told in ("losses", "rates", "epoch_losses", "concept_losses", "images", "micro_step", "epoch"):
        assert getattr(again, told) == getattr(plain, told), told


def test_a_step_that_was_left_halfway_is_done_again(comfy_host, small_models_folder, tmp_path):
    """Cancelled between two batches of one optimizer step: their gradients are gone, and so are their draws."""
    from lora_workbench.training.events import Cancelled, SilentSink

    settings = {"pictures": 6, "epochs": 2, "dropout": 0.2, "batch_size": 1, "gradient_accumulation": 3}
    with rig("sd3", small_models_folder, tmp_path, **settings) as it:
        losses, weights = it.train().losses, [tensor.detach().clone() for tensor in trained_tensors(it.network)]
    with rig("sd3", small_models_folder, tmp_path, **settings, sink=CancelAfter(5)) as it:
        with pytest.raises(Cancelled):
            it.train()
        assert (it.run.step, it.run.micro_step) == (1, 3)
        it.sink = SilentSink()
        again = it.train()
    assert again.losses == losses
    assert all(torch.equal(a, b) for a, b in zip(weights, trained_tensors(again.network), strict=True))


def test_cancel_keeps_what_was_trained(comfy_host, small_models_folder, tmp_path):
    from lora_workbench.training.events import Cancelled

    patcher = small_models.build("sd15", small_models_folder)
    sample(patcher, "sd15")  # loading it is the host's own change
    before = Snapshot(patcher)
    kept = []
    with (
        pytest.raises(Cancelled),
        rig("sd15", small_models_folder, tmp_path, patcher=patcher, epochs=50, sink=CancelAfter(3)) as it,
    ):
        try:
            it.train()
        finally:
            kept = [layer.up.master.detach().clone() for layer in it.network.adapters]
            assert it.run.step == 3
    assert all(tensor.abs().sum() > 0 for tensor in kept)
    assert before.differences(Snapshot(patcher)) == []


def test_the_hosts_interrupt_in_the_middle_of_a_step(comfy_host, small_models_folder, tmp_path):
    """Any layer of the host may raise it, in forward or when a block is computed again in backward."""
    import comfy.model_management as management
    from lora_workbench.training.host.progress import is_host_interrupt

    patcher = small_models.build("sd15", small_models_folder)
    sample(patcher, "sd15")  # loading it is the host's own change
    before = Snapshot(patcher)
    with rig("sd15", small_models_folder, tmp_path, patcher=patcher, epochs=5, gradient_checkpointing=True) as it:
        it.optimizer_step()
        good = [layer.up.master.detach().clone() for layer in it.network.adapters]
        management.interrupt_current_processing(True)
        with pytest.raises(BaseException) as raised:
            it.train()
        assert is_host_interrupt(raised.value)
        assert not management.processing_interrupted()
        assert all(torch.equal(a, layer.up.master) for a, layer in zip(good, it.network.adapters, strict=True))
    assert before.differences(Snapshot(patcher)) == []


def test_an_exception_in_backward_leaves_the_model_as_it_was(comfy_host, small_models_folder, tmp_path):
    patcher = small_models.build("sd15", small_models_folder)
    first, before = sample(patcher, "sd15"), Snapshot(patcher)

    def explode(*_):
        raise RuntimeError("in the middle of backward")

    with (
        pytest.raises(RuntimeError, match="in the middle of backward"),
        rig("sd15", small_models_folder, tmp_path, patcher=patcher) as it,
    ):
        it.network.adapters[len(it.network.adapters) // 2].add_gradients = explode
        it.train()
    assert before.differences(Snapshot(patcher)) == []
    assert torch.equal(first, sample(patcher, "sd15"))


def test_a_loss_that_is_no_number_stops_with_the_last_good_weights(comfy_host, small_models_folder, tmp_path):
    from lora_workbench.training.run.state import Diverged

    good = []

    def overflow_after_two(run, _ended):
        if run.step == 2:
            good.extend(tensor.detach().clone() for tensor in trained_tensors(run.network))
        if run.step == 3:  # what a rate far too high does to the weights
            for tensor in trained_tensors(run.network):
                tensor.data.mul_(1e30)

    settings = {"epochs": 50, "learning_rate": 1e-2, "after_step": overflow_after_two}
    with rig("sd3", small_models_folder, tmp_path, **settings) as it:
        with pytest.raises(Diverged, match=r"step 4: .* for .*\.png is not a finite number.*learning rate 0.01"):
            it.train()
        assert all(torch.equal(a, b) for a, b in zip(good, trained_tensors(it.network), strict=True))
        # What is said of the run is said of these weights.
        assert it.run.step == 2 == len(it.run.losses) == len(it.run.rates)


def test_schedule_free_is_saved_at_its_average_and_trains_on_untouched(comfy_host, small_models_folder, tmp_path):
    """However often it is saved, the run ends at the same bits; after a divergence its average is a number."""
    from lora_workbench.training.optimizers import weights_to_keep
    from lora_workbench.training.run.state import Diverged

    def save(run, _ended):
        with weights_to_keep(run.optimizer):
            saved.append(next(iter(trained_tensors(run.network))).detach().clone())

    saved: list[torch.Tensor] = []
    settings = {"optimizer": "ScheduleFreeAdamW", "learning_rate": 5e-3, "steps": 6}
    plain = trained("sd3", small_models_folder, tmp_path, **settings)
    often = trained("sd3", small_models_folder, tmp_path, **settings, after_step=save)
    assert all(torch.equal(a, b) for a, b in zip(plain, often, strict=True))
    assert not torch.equal(saved[-1], plain[0])

    def overflow(run, _ended):
        if run.step == 4:
            for state in run.optimizer.state.values():
                state["z"].fill_(math.inf)
            for tensor in trained_tensors(run.network):
                tensor.data.fill_(math.inf)

    with rig("sd3", small_models_folder, tmp_path, **settings, after_step=overflow) as it:
        with pytest.raises(Diverged):
            it.train()
        assert it.run.step == 3
        with weights_to_keep(it.run.optimizer):
            assert all(torch.isfinite(tensor).all() for tensor in trained_tensors(it.network))


def test_no_weight_is_saved_for_backward(comfy_host, small_models_folder, tmp_path):
    """What autograd holds between forward and backward are activations: nothing of the size of the model."""
    with rig("sd15", small_models_folder, tmp_path, batch_size=1, side=64) as it:
        sizes = []

        def note(tensor):
            sizes.append((tensor.data_ptr(), tensor.numel()))
            return tensor

        weights = {p.data_ptr() for p in it.model.model.parameters() if p.ndim > 1}
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            it.step()
    assert sizes and not weights & {pointer for pointer, _ in sizes}


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
