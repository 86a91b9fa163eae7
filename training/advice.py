"""What to say of a run's length before it starts: its steps, and settings that do not fit them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from .config import TrainConfig
from .events import counted
from .optimizers import is_schedule_free, scheduler_in_force

# A LoRA on a full-size model at the default rate learns little below the first, and breaks above the last.
FEWEST_STEPS, GOOD_STEPS, MOST_STEPS = 400, 1500, 6000
USUAL_WARM_UP = 0.1  # share of the steps
SHORTEST_CYCLE = 2  # steps
SAVES_SUGGESTED = 3  # in a run
SMALLEST_SHARE = 0.6  # of the pictures that a step should train
SLOWER, SLOW_STEPS = 3.0, 8  # times as long as the trial step, which warms up and so is slow itself; steps in a row
RISEN = 3.0  # times: a mean of ten losses or more hardly does that by chance


def run_length(config: TrainConfig, steps: int, epochs: int, images_per_epoch: int) -> str:
    """Say how long a run is and why.

    Args:
        config: The run's settings.
        steps: Optimizer steps of the run.
        epochs: Epochs of the run, the last one begun counted.
        images_per_epoch: Pictures shown in an epoch, counting repeats.
    """
    together = config.batch_size * config.gradient_accumulation
    text = f"Trains {counted(steps, 'step')}: {counted(epochs, 'epoch')} of {counted(images_per_epoch, 'picture')}"
    return f"{text}, {together} per step."


def hints(
    config: TrainConfig, steps: int, epochs: int, finished_epochs: int, images_per_step: float
) -> tuple[str, ...]:
    """Name each setting that does not fit the length of the run, with a value that does.

    None of them stops the run.

    Args:
        config: The run's settings.
        steps: Optimizer steps of the run.
        epochs: Epochs of the run, the last one begun counted.
        finished_epochs: Those that the run finishes.
        images_per_step: Pictures that a step trains on average.
    """
    found = [_steps(config, steps, epochs), _warm_up(config, steps), _cycles(config, steps)]
    found += [_batches(config, images_per_step), _saved_steps(config, steps)]
    found.append(_saved_epochs(config, steps, finished_epochs))
    return tuple(hint for hint in found if hint)


def risen(config: TrainConfig, losses: Sequence[float]) -> str:
    """Say that a run's loss at its end is several times that at its start; nothing if it is not.

    Args:
        config: The run's settings.
        losses: Mean loss of each step.
    """
    share = max(10, len(losses) // 10)
    if len(losses) < 2 * share:
        return ""
    first, last = (sum(part) / share for part in (losses[:share], losses[-share:]))
    if last < RISEN * first:
        return ""
    return (
        f"The loss rose from {first:.3g} to {last:.3g}, so the LoRA is probably worse than none. Set learning rate to "
        f"{config.learning_rate / 10:g}."
    )


class Slowdown:
    """Notices steps that take several times as long as the trial step did.

    On Windows the driver then probably keeps part of them in system memory, which raises no error.
    """

    def __init__(self) -> None:
        self._last, self._has_told = deque[float](maxlen=SLOW_STEPS), False

    def see(self, seconds: float, trial: float) -> str:
        """Return a hint the first time that several steps in a row were slow, else nothing.

        Args:
            seconds: What a batch took.
            trial: What a batch took in the trial step.
        """
        self._last.append(seconds / trial)
        if self._has_told or len(self._last) < SLOW_STEPS or min(self._last) < SLOWER:
            return ""
        self._has_told = True
        return (
            f"Steps take {min(self._last):.0f} times as long as the trial step. On Windows, what does not fit into the "
            "card is moved to system memory. Close other programs that use the card, or set memory to a smaller size."
        )


def _steps(config: TrainConfig, steps: int, epochs: int) -> str:
    if not config.warn_about_steps or FEWEST_STEPS <= steps <= MOST_STEPS:
        return ""
    per_epoch = steps / epochs
    better = max(1, round(GOOD_STEPS / per_epoch))
    fits = FEWEST_STEPS <= better * per_epoch <= MOST_STEPS
    setting = f"steps to {GOOD_STEPS}" if config.steps or not fits else f"epochs to {better}"
    extent = "few, so the LoRA may learn little" if steps < FEWEST_STEPS else "many, so the LoRA may overfit"
    return f"{counted(steps, 'step')} {'is' if steps == 1 else 'are'} {extent}. Set {setting}."


def _warm_up(config: TrainConfig, steps: int) -> str:
    ignored = scheduler_in_force(config) == "constant" and not is_schedule_free(config)
    if ignored or not config.warmup_steps or config.warmup_steps < steps:
        return ""
    fitting = int(steps * USUAL_WARM_UP)
    return (
        f"warmup steps is {config.warmup_steps}, but the run has {counted(steps, 'step')}, so the learning rate rises "
        f"to the end. Set warmup steps to {fitting}."
    )


def _batches(config: TrainConfig, images_per_step: float) -> str:
    wanted = config.batch_size * config.gradient_accumulation
    if config.batch_size == 1 or images_per_step >= SMALLEST_SHARE * wanted:
        return ""
    return (
        f"batch size is {config.batch_size}, but a step trains {images_per_step:.1f} pictures on average, since a "
        f"batch has one bucket and one caption length. Set batch size to 1 and gradient accumulation to {wanted}."
    )


def _cycles(config: TrainConfig, steps: int) -> str:
    if scheduler_in_force(config) != "cosine_with_restarts":
        return ""
    left = steps - config.warmup_steps if config.warmup_steps < steps else steps  # the warm-up has its own hint
    if left >= config.scheduler_cycles * SHORTEST_CYCLE or config.scheduler_cycles == 1:
        return ""
    return (
        f"scheduler cycles is {config.scheduler_cycles}, but only {counted(left, 'step')} can be divided among them. "
        f"Set scheduler cycles to at most {max(1, left // SHORTEST_CYCLE)}."
    )


def _saved_steps(config: TrainConfig, steps: int) -> str:
    if config.save_every_steps <= steps:
        return ""
    return (
        f"save every steps is {config.save_every_steps}, but the run has {counted(steps, 'step')}, so no checkpoint is "
        f"saved before the end. Set save every steps to {_share(steps)}."
    )


def _saved_epochs(config: TrainConfig, steps: int, epochs: int) -> str:
    if config.save_every_epochs <= epochs:
        return ""
    instead = f" and save every steps to {_share(steps)}" if epochs < 2 else ""  # no epoch ends before the run
    return (
        f"save every epochs is {config.save_every_epochs}, but the run finishes {counted(epochs, 'epoch')}, so no "
        f"checkpoint is saved before the end. Set save every epochs to {_share(epochs)}{instead}."
    )


def _share(whole: int) -> int:
    """After how many of `whole` to save: a third, a half of two, and 0, which saves none, of one."""
    return whole // SAVES_SUGGESTED or whole // 2
