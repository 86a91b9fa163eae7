"""Settings, draws and messages: what needs no model to be checked."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from lora_workbench.training.adapters.lora import LoraAdapter
from lora_workbench.training.adapters.network import Network
from lora_workbench.training.config import SOURCES, Source, TrainConfig, TrainerSettings
from lora_workbench.training.draws import generator, seed_for
from lora_workbench.training.errors import SettingError, UserError
from lora_workbench.training.events import StepEvent, clock, describe
from lora_workbench.training.optimizers import decay, make_optimizer, make_scheduler, optimizer_class
from lora_workbench.training.settings import ordered_fields, parse_color


def test_every_setting_has_a_doc_and_a_default_within_its_bounds():
    for field in dataclasses.fields(TrainConfig):
        assert field.metadata["doc"].endswith("."), field.name
    TrainConfig()


def test_seven_settings_are_basic_and_the_rest_is_advanced():
    plain = [field.name for field in ordered_fields(TrainerSettings) if not field.metadata["advanced"]]
    assert plain == ["name", "epochs", "learning_rate", "rank", "batch_size", "memory", "if_run_before"]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"rank": 0}, "rank is 0. Set it to at least 1"),
        ({"epochs": 0}, "epochs is 0"),
        ({"learning_rate": 0.0}, "nothing would be learned"),
        ({"learning_rate": math.nan}, "finite"),
        ({"dropout": 1.0}, "dropout is 1.0. Set it to at most 0.95"),
        ({"optimizer": "Adam"}, "optimizer is 'Adam'. Choose one of AdamW, "),
        ({"optimizer": "Prodigy"}, "Set it to 1"),
        ({"optimizer": "Prodigy", "learning_rate": 1.0, "lora_plus": 4.0}, "rate for all weights. Set lora plus to 1"),
        ({"lora_plus": 0.5}, "lora plus is 0.5. Set it to at least 1"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_in_words(setting, words):
    with pytest.raises(SettingError, match=words):
        TrainConfig(**setting)


def test_alpha_0_is_rank():
    assert TrainConfig(rank=8).effective_alpha == 8
    assert TrainConfig(rank=8, alpha=2).effective_alpha == 2


@pytest.mark.parametrize(
    ("text", "color"), [("#10ff00", (16, 255, 0)), ("White", (255, 255, 255)), ("808080", (128, 128, 128))]
)
def test_colors(text, color):
    assert parse_color(text) == color


@pytest.mark.parametrize("text", ["#12345", "octarine", "", "#gggggg"])
def test_what_is_no_color(text):
    with pytest.raises(SettingError, match="#rrggbb"):
        parse_color(text)


def test_draws_depend_on_purpose_and_place_alone():
    first = torch.rand(4, generator=generator(1, "noise", 7))
    assert torch.equal(first, torch.rand(4, generator=generator(1, "noise", 7)))
    for other in ((2, "noise", 7), (1, "timestep", 7), (1, "noise", 8), (1, "noise", 7, 0)):
        assert not torch.equal(first, torch.rand(4, generator=generator(*other)))
    assert 0 <= seed_for(2**63 - 1, "x", 10**9) < 2**63


def test_a_missing_package_names_the_command(monkeypatch):
    from lora_workbench.training import optimizers

    monkeypatch.setitem(optimizers.SOURCES, "Lion", Source("not_a_module_at_all", "Lion", "pytorch-optimizer>=4.0"))
    with pytest.raises(UserError, match=r'pip install "pytorch-optimizer>=4.0"'):
        optimizer_class("Lion")


@pytest.mark.parametrize("ratio", [1.0, 4.0])
@pytest.mark.parametrize("name", ["AdamW", "Lion", "CAME", "Adafactor", "ScheduleFreeAdamW", "AdamW8bit"])
def test_lora_plus_moves_up_by_so_many_times_the_rate(name, ratio):
    package = SOURCES[name].module
    pytest.importorskip(package.split(".")[0], reason=f"{name} comes from a package that is not installed")

    def moved(lora_plus: float) -> tuple[float, float]:
        adapter = LoraAdapter("a.0.b", torch.zeros(4, 64), torch.zeros(64, 4), 1.0, 0.0)
        config = TrainConfig(
            optimizer=name, learning_rate=0.01, lora_plus=lora_plus, weight_decay=0.0, scheduler="cosine"
        )
        network = Network([adapter], torch.float32, torch.device("cpu"))
        optimizer = make_optimizer(config, network)
        scheduler = make_scheduler(config, optimizer, 10)
        for _ in range(3):
            network.flat.total.fill_(1.0)
            optimizer.step()
            scheduler.step()
        left = 1.0 if name.startswith("ScheduleFree") else decay("cosine", 0.3)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01 * left)
        return float(adapter.down.master.mean()), float(adapter.up.master.mean())

    alike, apart = moved(1.0), moved(ratio)
    assert alike[0] < 0
    assert apart[0] == pytest.approx(alike[0], rel=1e-3)
    assert apart[1] == pytest.approx(ratio * alike[1], rel=1e-3)


def test_rex_falls_slowly_first():
    assert decay("rex", 0) == 1 and decay("rex", 1) == 0
    assert decay("rex", 0.5) == pytest.approx(0.5 / 0.75)


@pytest.mark.parametrize("warmup", [0, 5])
@pytest.mark.parametrize(
    "name", ["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"]
)
def test_schedules_are_those_of_transformers(name, warmup):
    library = pytest.importorskip("transformers.optimization")
    special = {"cosine_with_restarts": {"num_cycles": 3}, "polynomial": {"lr_end": 0.0, "power": 2.0}}.get(name, {})

    def rates(make) -> list[float]:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
        scheduler, found = make(optimizer), []
        for _ in range(31):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return found

    config = TrainConfig(scheduler=name, warmup_steps=warmup, scheduler_cycles=3)
    ours = rates(lambda optimizer: make_scheduler(config, optimizer, 30))
    theirs = rates(
        lambda optimizer: library.get_scheduler(
            name, optimizer, num_warmup_steps=warmup, num_training_steps=30, scheduler_specific_kwargs=special
        )
    )
    assert ours == pytest.approx(theirs, abs=1e-12)


def test_a_step_in_words():
    event = StepEvent(12, 40, 2, 5, 0.2, 0.1234, 1e-4, 30.0, 0.5)
    assert describe(event) == "step 12/40 · epoch 2/5 · loss 0.1234 · 2.00 it/s · 14 s left"
    slow = dataclasses.replace(event, seconds_per_step=90.0)
    assert describe(slow) == "step 12/40 · epoch 2/5 · loss 0.1234 · 90.0 s/it · 42:00 left"
    assert [clock(s) for s in (0, 59.4, 60, 3725)] == ["0 s", "59 s", "1:00", "1:02:05"]


def test_a_loss_that_rose_is_told():
    from lora_workbench.training.advice import risen

    config = TrainConfig(learning_rate=1e-3)
    noisy = [0.1 * (1 + (step * 7) % 5) for step in range(200)]
    assert risen(config, noisy) == "" and risen(config, []) == ""
    assert risen(config, [0.1] * 10 + [1.0] * 9) == "", "too few to tell"
    said = risen(config, [0.1] * 100 + [0.4] * 100)
    assert said == (
        "The loss rose from 0.1 to 0.4, so the LoRA is probably worse than none. Set learning rate to 0.0001."
    )
