"""How a run fits into memory: each rung of the ladder, and out-of-memory errors on a stand-in card."""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from support import small_models
from support.card import Card, lending
from support.marks import long_but
from support.rig import Snapshot, rig, sample, trained_tensors

SETTINGS: dict[str, Any] = {"batch_size": 4, "steps": 6, "pictures": 4, "dropout": 0.3}
CHANGES = (
    "plain", "gradient checkpointing", "block inputs in system memory", "weights streamed from system memory",
    "8-bit optimizer state", "batches of 2", "batches of 1",
)  # fmt: skip
# How many tries fail before each: streaming keeps a half, a quarter, an eighth, a sixteenth, a twentieth on the card.
FAILS = (0, 1, 2, 3, 8, 9, 10)


class Told:
    """Keeps the sentences of a run."""

    def __init__(self) -> None:
        from lora_workbench.training.events import SilentSink

        self.sentences: list[str] = []
        self._silent = SilentSink()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._silent, name)

    def tell(self, text: str) -> None:
        self.sentences.append(text)

    hint = tell


@pytest.fixture
def folders(comfy_host: Any, small_models_folder: Any, tmp_path: Any) -> Any:
    return small_models_folder, tmp_path


def losses_of(folders: Any, card: Card, name: str = "sd3", **settings: Any) -> tuple[list[float], str, Any]:
    """Losses of a run, the rung it ended on, and its trained tensors."""
    models, work = folders
    with card.inserted(), rig(name, models, work / str(id(card)), **{**SETTINGS, **settings}) as it:
        losses = list(it.train().losses)
        return losses, it.ready.fit.ladder.rung.name, [t.clone() for t in trained_tensors(it.network)]


@pytest.fixture(scope="module")
def untroubled(comfy_host: Any, small_models_folder: Any, tmp_path_factory: Any) -> tuple[list[float], str, Any]:
    """The run that all memory is free for."""
    return losses_of((small_models_folder, tmp_path_factory.mktemp("untroubled")), Card())


@pytest.mark.parametrize("number", long_but({3, 6}, range(len(CHANGES))))
def test_the_rehearsal_steps_down_until_the_run_fits(folders: Any, untroubled: Any, number: int) -> None:
    expected, plain, _ = untroubled
    losses, rung, _ = losses_of(folders, Card(fails=FAILS[number]))
    assert plain == "plain" and rung.endswith(CHANGES[number])
    # All that changes the numbers by more than rounding is the 8-bit state.
    assert losses == pytest.approx(expected, rel=1e-4 if number < 4 else 2e-2)


@pytest.mark.parametrize("number", long_but({4}, range(1, len(CHANGES))))
def test_a_run_goes_on_one_rung_lower(folders: Any, untroubled: Any, number: int) -> None:
    """Three steps, the trial step before them included, then no memory."""
    expected, _, _ = untroubled
    losses, rung, _ = losses_of(folders, Card(fails=FAILS[number], after=4))
    assert rung.endswith(CHANGES[number])
    assert losses[:3] == expected[:3]
    assert losses == pytest.approx(expected, rel=1e-4 if number < 4 else 2e-2)


@pytest.mark.long
@pytest.mark.parametrize("after", [0, 4])
def test_the_end_of_the_ladder_is_an_error_with_numbers(folders: Any, after: int) -> None:
    from lora_workbench.training.errors import UserError

    with pytest.raises(UserError) as error:
        losses_of(folders, Card(free=3 << 30, fails=99, after=after))
    text = str(error.value)
    assert text.startswith("Out of memory. The smallest way to train takes about ") and "2.6 GB are free" in text
    assert text.endswith(" Set precision to bf16.")


@pytest.mark.parametrize("name", long_but({"flux"}, ["sd15", "flux"]))
def test_the_model_comes_back_from_the_last_rung(folders: Any, name: str) -> None:
    models, work = folders
    patcher = small_models.build(name, models)
    before, picture = Snapshot(patcher), sample(patcher, name)
    card = Card(fails=4, after=3)
    with card.inserted(), rig(name, models, work, patcher=patcher, **SETTINGS) as it:
        it.train()
        assert it.ready.fit.ladder.rung.streams
    assert torch.equal(picture, sample(patcher, name))
    # The host keeps streamed what was streamed; it loads it again when there is room.
    assert [name for name in before.differences(Snapshot(patcher)) if name != "modules"] == []


@pytest.mark.parametrize("name", ["sd3", "sdxl"])
@pytest.mark.parametrize("size", [1, 3])
def test_parts_of_a_batch_train_what_the_batch_does(folders: Any, name: str, size: int) -> None:
    """Also with dropout, prior preservation and pictures of another weight."""
    from lora_workbench.training.rung import Rung

    found = []
    for micro_batch in (0, size):
        settings = SETTINGS | {"targets": ("picture", "model", "picture", "model")}
        models, work = folders
        with rig(name, models, work / str(micro_batch), only=Rung(micro_batch=micro_batch), **settings) as it:
            weighted = tuple(replace(p, weight=1 + n) for n, p in enumerate(it.dataset.pictures))
            it.dataset = replace(it.dataset, pictures=weighted)
            for tensor in trained_tensors(it.network):
                tensor.add_(0.05)  # matrices of zeros would hide the gradients of the others
            losses = it.step().losses.tolist()
            found.append((losses, [view.total.clone() for view in it.network.flat.views]))
    (losses, gradients), (others, other_gradients) = found
    assert others == pytest.approx(losses, rel=1e-4)
    for one, other in zip(gradients, other_gradients, strict=True):
        assert (one - other).abs().max() <= 1e-3 * one.abs().max()


@pytest.mark.parametrize("name", long_but({"flux", "qwen"}, ["sdxl", "flux", "qwen"]))
def test_inputs_that_wait_in_system_memory_change_no_bit(folders: Any, name: str, monkeypatch: Any) -> None:
    from lora_workbench.training.host import recompute
    from lora_workbench.training.rung import Rung

    models, work = folders
    monkeypatch.setattr(recompute, "_WORTH_SENDING", 1)
    waited, back = [], recompute._Waiting.back
    monkeypatch.setattr(recompute._Waiting, "back", lambda self: waited.append(self) or back(self))
    found = []
    for offloads in (False, True):
        rung = Rung(checkpointing=True, offloads=offloads)
        with rig(name, models, work / str(offloads), only=rung, **SETTINGS) as it:
            found.append((list(it.train().losses), [t.clone() for t in trained_tensors(it.network)]))
        assert bool(waited) == offloads
    assert found[0][0] == found[1][0] and all(map(torch.equal, found[0][1], found[1][1]))


def test_a_size_that_is_too_small_is_refused_with_the_numbers(folders: Any) -> None:
    from lora_workbench.training.errors import UserError
    from lora_workbench.training.fit import Fit
    from lora_workbench.training.host.model import HostModel

    models, work = folders
    told = (
        r"^memory is 8 GB, which leaves 7\.2 GB to training, but this run takes at least 8\.7 GB \(model 0\.0 GB, LoRA "
        r"and optimizer 0\.0 GB, activations 8\.7 GB\)\. Lower resolution in Bucket Images; the largest bucket is "
    )
    with (
        Card().inserted(),
        mock.patch.object(HostModel, "estimated", lambda *_: 1 << 33),
        mock.patch.object(Fit, "_count", lambda *_: 1 << 33),
        pytest.raises(UserError, match=told),
        rig("sd3", models, work, memory="8 GB", **SETTINGS | {"precision": "bf16"}),
    ):
        pass


@pytest.mark.parametrize(
    ("memory", "told"), [("auto", "Memory: plain."), ("8 GB", "Memory: plain, about ")]
)
def test_a_card_that_does_not_tell_its_memory(folders: Any, memory: str, told: str) -> None:
    sink = Told()
    losses_of(folders, Card(free=None), memory=memory, sink=sink)
    assert any(sentence.startswith(told) for sentence in sink.sentences)


def test_a_second_training_finds_what_the_first_one_held(folders: Any) -> None:
    from lora_workbench.training.host import memory

    models, work = folders
    with Card().inserted():
        with rig("sd3", models, work / "first", **SETTINGS) as it:
            it.train()
            buffers = weakref.ref(it.network.flat)
            holds = [it.run]  # what a finished node could still hold by a circle
            holds.append(holds)
        del it, holds
        freed: list[bool] = []
        with mock.patch.object(memory, "free", lambda _device: freed.append(buffers() is None) or 1 << 40):
            rungs = []
            with rig("sd3", models, work / "second", **SETTINGS) as it:
                rungs.append(it.ready.fit.ladder.rung.name)
    assert freed[0] and rungs == ["plain"]


def test_other_models_leave_the_card_or_are_named(folders: Any, monkeypatch: Any) -> None:
    import comfy.model_management as management
    from lora_workbench.training.host import memory
    from lora_workbench.training.host.model import HostModel

    models, _ = folders
    trained, other, third = (small_models.build(name, models) for name in ("sd3", "sd15", "flux"))
    with torch.inference_mode():
        management.load_models_gpu([trained, other, third])
    loaded = {id(one.model): one for one in management.current_loaded_models}
    assert memory.make_way(HostModel(trained)) == []  # on the CPU nothing is moved
    assert set(loaded) >= {id(trained), id(other), id(third)}
    monkeypatch.setattr(memory, "is_apart", lambda _device: True)
    monkeypatch.setattr(loaded[id(third)], "model_unload", lambda *_: False)
    assert memory.make_way(HostModel(trained)) == ["Flux"]
    left = [one.model for one in management.current_loaded_models]
    assert trained in left and other not in left and third in left


@pytest.mark.long
def test_the_rung_is_in_the_record_of_the_run(folders: Any) -> None:
    from lora_workbench.training.run.keeper import Keeper

    models, work = folders
    with Card(fails=FAILS[5]).inserted(), rig("sd3", models, work, optimizer="AdamW", **SETTINGS) as it:
        it.train()
        setup = it.setup
        keeper = Keeper(it.model, setup.plan, it.run, setup.precision, setup.ladder, it.sink, (0, 0), 0.0)
        with keeper.opened(work):
            lora, summary = keeper.finish("finished")
    rung = (
        "gradient checkpointing, block inputs in system memory, weights streamed from system memory, 8-bit optimizer "
        "state, batches of 2"
    )
    assert summary.memory == rung == lora.metadata["lora_workbench.memory"]
    assert lora.metadata["ss_gradient_checkpointing"] == "True"
    assert "AdamW8bit" in lora.metadata["ss_optimizer"]


def test_the_host_is_asked_for_what_is_not_taken_yet(folders: Any) -> None:
    """Before the run the LoRA's buffers are there; in its middle all of the LoRA's state is."""
    from lora_workbench.training.host import memory

    models, work = folders
    asked: list[int] = []
    real = memory.load

    def load(model: Any, room: int, weights: int | None) -> None:
        asked.append(room)
        real(model, room, weights)

    with (
        Card(free=3 << 30, fails=1, after=4).inserted(),
        mock.patch.object(memory, "load", load),
        rig("sd3", models, work, rank=256, **SETTINGS) as it,
    ):
        fit, buffers = it.ready.fit, it.network.flat.size
        need = fit.need(fit.ladder.rung)
        it.train()
        later = fit.need(fit.ladder.rung)
    assert asked == [need.besides - buffers, later.besides - later.lora]


def test_a_host_that_finds_no_memory_to_load_into_is_one_rung_too(folders: Any) -> None:
    from lora_workbench.training.host import memory

    models, work = folders
    loads, real = [], memory.load

    def load(*args: Any) -> None:
        loads.append(args)
        if len(loads) == 1:
            raise torch.OutOfMemoryError("Allocation on device")
        real(*args)

    with Card().inserted(), mock.patch.object(memory, "load", load), rig("sd3", models, work, **SETTINGS) as it:
        assert it.ready.fit.ladder.rung.name == "gradient checkpointing"


@pytest.mark.parametrize(
    "text", ["VRAM grow failed: 12", "CUBLAS_STATUS_ALLOC_FAILED", "CUDA error: out of memory",
             "MPS backend out of memory", "DefaultCPUAllocator: not enough memory", "can't allocate memory"],
)  # fmt: skip
def test_what_libraries_say_when_memory_is_out(comfy_host: Any, text: str) -> None:
    from lora_workbench.training.host.out_of_memory import is_out_of_memory

    assert is_out_of_memory(RuntimeError(text)) and is_out_of_memory(torch.OutOfMemoryError("Allocation on device"))
    assert not is_out_of_memory(RuntimeError("size mismatch")) and not is_out_of_memory(ValueError(text))


def test_pages_that_an_error_kept_are_taken_back(folders: Any) -> None:
    """As a host with dynamic memory leaves them on the layer, and would lend them again."""
    from lora_workbench.training.host.model import HostModel

    models, work = folders
    patcher = small_models.build("sd3", models)
    layer = next(iter(HostModel(patcher).targets().values()))
    card = Card(fails=1)
    card.on_failure = lambda: setattr(layer, "_prefetch", {"signature": None})
    lent: list[bool] = []
    card.on_pass = lambda: lent.append(hasattr(layer, "_prefetch"))
    with (
        lending() as taken_back,
        card.inserted(),
        rig("sd3", models, work, patcher=patcher, **SETTINGS) as it,
    ):
        it.train()
    assert taken_back == [layer] and not any(lent) and not hasattr(layer, "_prefetch")


@pytest.mark.parametrize("name", ["AdamW", "Lion"])
def test_the_optimizers_state_goes_on_in_eight_bits(comfy_host: Any, name: str) -> None:
    from bitsandbytes.functional import dequantize_blockwise
    from lora_workbench.training.config import TrainConfig
    from lora_workbench.training.optimizers import optimizer_class, take_over_state

    weight = torch.randn(64, 256)
    weight.grad = torch.randn(64, 256)
    old, new = (optimizer_class(kind)([weight], lr=TrainConfig().learning_rate) for kind in (name, f"{name}8bit"))
    for _ in range(3):
        old.step()
    take_over_state(old, new)
    state, before = new.state[weight], old.state[weight]
    assert state["step"] == 3
    for which, kept in enumerate(("exp_avg", "exp_avg_sq")[: 2 if name == "AdamW" else 1], 1):
        held, scales, code = (state[f"{part}{which}"] for part in ("state", "absmax", "qmap"))
        again = dequantize_blockwise(held, absmax=scales, code=code, blocksize=256)
        assert (again - before[kept]).abs().max() < 0.02 * before[kept].abs().max()
    new.step()
    assert state["step"] == 4 and bool(weight.isfinite().all())


@pytest.mark.long
def test_eight_bits_are_there_before_they_are_tried(folders: Any) -> None:
    """The trial of a rung needs the memory that the rung frees."""
    models, work = folders
    card, seen = Card(fails=FAILS[4], after=4), []
    with card.inserted(), rig("sd3", models, work, **SETTINGS) as it:
        card.on_pass = lambda: seen.append((card.fails, it.run.optimizer_name))
        it.train()
    assert seen.index((0, "AdamW8bit")) == 3 + FAILS[4]  # the first pass that succeeds: the trial of the rung


@pytest.mark.parametrize("where", ["backward", "optimizer"])
@pytest.mark.parametrize("optimizer", ["AdamW", "Lion"])
def test_a_step_that_fails_late_is_done_again(folders: Any, where: str, optimizer: str) -> None:
    from lora_workbench.training.adapters.flat import Flat

    models, work = folders
    settings = SETTINGS | {"optimizer": optimizer, "learning_rate": 1e-4}
    expected, _, _ = losses_of(folders, Card(), **settings)
    failed: list[int] = []

    def failing(*args: Any) -> Any:
        if len(it.run.rates) != 3 or failed:
            return real(*args)
        failed.append(1)
        if where == "backward":
            real(*args)
        else:
            it.network.flat.master[::2].add_(1)  # some weights are changed, others not
        raise torch.OutOfMemoryError("Allocation on device")

    with Card().inserted(), rig("sd3", models, work / "late", **settings) as it:
        owner = Flat if where == "backward" else it.run.optimizer
        name = "add_up" if where == "backward" else "step"
        real = getattr(owner, name)
        with mock.patch.object(owner, name, failing):
            losses = it.train().losses
        assert failed and it.ready.fit.ladder.rung.name != "plain"
    assert losses == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("reserved", "windows", "spilled"), [(70, True, False), (75, True, True), (75, False, False)])
def test_a_step_that_went_into_system_memory_is_seen_on_windows(
    comfy_host: Any, monkeypatch: Any, reserved: int, windows: bool, spilled: bool
) -> None:
    """Of 80, the screen has 8."""
    import comfy.model_management as management
    from lora_workbench.training.host import memory

    card = torch.device("cuda")
    monkeypatch.setattr(management, "WINDOWS", windows)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 20)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (52, 80))
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _: reserved)
    assert memory.has_spilled(card, memory.begin_peak(card)) is spilled
