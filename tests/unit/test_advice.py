"""What is said of a run's length before it starts: kohya_ss #735 is one of the many who trained too few steps."""

from __future__ import annotations

import pytest
from lora_workbench.training.advice import FEWEST_STEPS, MOST_STEPS, Slowdown, hints, run_length
from lora_workbench.training.config import TrainConfig
from lora_workbench.training.settings import settings_from


def said(steps: int, epochs: int = 10, finished: int | None = None, /, **settings: object) -> str:
    config = TrainConfig(**{"epochs": epochs, **settings})
    return "\n".join(hints(config, steps, epochs, epochs if finished is None else finished, config.batch_size))


def test_the_length_of_a_run_in_words():
    assert run_length(TrainConfig(), 150, 10, 15) == "Trains 150 steps: 10 epochs of 15 pictures, 1 per step."
    config = TrainConfig(batch_size=2, gradient_accumulation=3)
    assert run_length(config, 1, 1, 1) == "Trains 1 step: 1 epoch of 1 picture, 6 per step."


@pytest.mark.parametrize(
    ("steps", "epochs", "settings", "advice"),
    [
        (150, 10, {}, "150 steps are few, so the LoRA may learn little. Set epochs to 100."),
        (399, 10, {}, "Set epochs to 38."),
        (1, 1, {}, "1 step is few, so the LoRA may learn little. Set epochs to 1500."),
        (150, 10, {"steps": 150}, "few, so the LoRA may learn little. Set steps to 1500."),
        (30_000, 10, {}, "30000 steps are many, so the LoRA may overfit. Set epochs to 1."),
        (9_000, 3, {"steps": 9_000}, "many, so the LoRA may overfit. Set steps to 1500."),
        (70_000, 10, {}, "Set steps to 1500."),  # one epoch has more than enough
    ],
)
def test_too_few_and_too_many_steps(steps, epochs, settings, advice):
    assert advice in said(steps, epochs, **settings)
    assert said(steps, epochs, **settings, warn_about_steps=False) == ""


@pytest.mark.parametrize("steps", [FEWEST_STEPS, 1500, MOST_STEPS])
def test_a_usual_number_of_steps_is_left_in_peace(steps):
    assert said(steps) == ""


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({"warmup_steps": 500}, "warmup steps is 500, but the run has 500 steps, so the learning rate rises to the "
                                "end. Set warmup steps to 50."),
        ({"warmup_steps": 800, "optimizer": "ScheduleFreeAdamW", "scheduler": "constant"}, "Set warmup steps to 50."),
        ({"scheduler": "cosine_with_restarts", "scheduler_cycles": 400}, "scheduler cycles is 400, but only 500 steps "
         "can be divided among them. Set scheduler cycles to at most 250."),
        ({"scheduler": "cosine_with_restarts", "scheduler_cycles": 30, "warmup_steps": 450}, "at most 25."),
        ({"save_every_steps": 501}, "Set save every steps to 166."),
        ({"save_every_epochs": 11}, "save every epochs is 11, but the run finishes 10 epochs, so no checkpoint is "
                                    "saved before the end. Set save every epochs to 3."),
    ],
    ids=str,
)  # fmt: skip
def test_what_does_not_fit_the_length_is_said_with_a_value_that_fits(settings, advice):
    assert advice in said(500, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"warmup_steps": 499},
        {"warmup_steps": 800, "scheduler": "constant"},  # which ignores it
        {"scheduler": "cosine_with_restarts", "scheduler_cycles": 250},
        {"scheduler": "cosine", "scheduler_cycles": 400},
        {"scheduler": "cosine_with_restarts", "scheduler_cycles": 400, "optimizer": "ScheduleFreeAdamW"},
        {"save_every_steps": 500},
        {"save_every_epochs": 10},
    ],
    ids=str,
)
def test_what_fits_is_left_in_peace(settings):
    assert said(500, **settings) == ""


@pytest.mark.parametrize(
    "settings", [{"warmup_steps": 9}, {"save_every_steps": 9}, {"save_every_epochs": 9}], ids=str
)
@pytest.mark.parametrize(("steps", "epochs"), [(1, 1), (2, 1), (2, 2), (3, 3), (8, 2)])
def test_the_values_that_are_advised_fit_themselves(settings, steps, epochs):
    config = TrainConfig(epochs=epochs, warn_about_steps=False, **settings)
    (hint,) = hints(config, steps, epochs, epochs, 1)
    (name,) = settings
    value = int(hint.rpartition(f"Set {name.replace('_', ' ')} to ")[2].split()[0].rstrip("."))
    better = TrainConfig(epochs=epochs, warn_about_steps=False, **{name: value})
    assert hints(better, steps, epochs, epochs, 1) == ()


def test_a_run_of_one_epoch_can_still_save():
    assert said(600, 1, save_every_epochs=5).endswith("Set save every epochs to 0 and save every steps to 200.")


def test_an_epoch_that_does_not_end_saves_nothing():
    assert "the run finishes 1 epoch" in said(600, 2, 1, steps=600, save_every_epochs=2)
    assert said(600, 2, 2, save_every_epochs=2) == ""


def test_the_settings_of_an_earlier_version_take_the_new_defaults():
    config = settings_from(TrainConfig, {"name": "old", "epochs": 3, "on_cancel": "keep and go on"})
    assert config.warn_about_steps and not config.train_without_captions


def test_batches_that_buckets_and_lengths_leave_short():
    config = TrainConfig(batch_size=4, gradient_accumulation=2, warn_about_steps=False)
    assert hints(config, 800, 10, 10, 7.5) == ()
    (hint,) = hints(config, 800, 10, 10, 2.6)
    assert "batch size is 4, but a step trains 2.6 pictures" in hint
    assert hint.endswith("Set batch size to 1 and gradient accumulation to 8.")


def test_steps_that_became_slow_are_noticed_once():
    slowdown = Slowdown()
    quick = [slowdown.see(seconds, trial=1.0) for seconds in [1, 9, 9, 9, 9, 9, 9, 9, 2.9]]
    slow = [slowdown.see(8, trial=2.0) for _ in range(20)]
    assert not any(quick) and sum(map(bool, slow)) == 1
    assert slow[7].startswith("Steps take 4 times as long as the trial step.") and "set memory to a smaller" in slow[7]
