"""The training loop: epochs, optimizer steps, the last good weights. It can be left and entered again between steps."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from .config import OptimizerSettings
from .data.batches import Batch
from .events import Cancelled, Sink, StepEvent
from .run.state import Diverged, Run
from .step import NotFinite, Setup, training_step

AfterStep = Callable[[Run, bool], None]


def train(setup: Setup, run: Run, sink: Sink, after_step: AfterStep | None = None) -> Run:
    """Train from where the run stands to its planned number of steps.

    Args:
        setup: What every step is made of.
        run: Its state; at its beginning or between any two steps.
        sink: Receives each step and is checked for a cancel.
        after_step: Called after each optimizer step with the run and whether an epoch just ended.

    Raises:
        Cancelled: The user pressed cancel; the run holds what was trained so far and can go on.
        Diverged: A loss or gradient is not finite; the run holds the last good weights and cannot go on.
    """
    good, pace = LastGood(run), _Pace()
    while run.step < run.total and run.epoch < setup.plan.epochs:
        steps, epoch = setup.plan.steps(run.epoch), run.epoch
        for batches in steps[run.position :]:
            if run.step >= run.total:
                break
            try:
                optimizer_step(setup, run, batches, sink, good)
            except NotFinite as error:
                failed = run.step + 1
                good.restore(run)
                raise Diverged(_why(error, failed, setup.plan.config)) from error
            ended = run.position == len(steps)
            if ended:
                run.record_epoch()
            sink.step(pace.event(run, epoch + 1, setup.plan.epochs))
            if after_step:
                after_step(run, ended)
    return run


def optimizer_step(setup: Setup, run: Run, batches: list[Batch], sink: Sink, good: LastGood) -> None:
    """Train one optimizer step: every batch forward and backward, then one update of the weights.

    Raises:
        Cancelled: The user pressed cancel between two batches; the run is as before this step.
        NotFinite: A loss or gradient is not finite; the weights were not updated.
    """
    total = 0.0
    pictures: list[tuple[str, float]] = []
    run.optimizer.zero_grad(set_to_none=True)  # of a step that was left halfway
    for micro_step, batch in enumerate(batches, run.micro_step):
        if sink.cancelled():
            raise Cancelled
        losses = training_step(setup, batch, micro_step)
        total += losses.total
        pictures += losses.pictures
    limit = setup.plan.config.max_grad_norm or math.inf
    norm = torch.nn.utils.clip_grad_norm_(list(run.network.parameters()), limit)
    if not torch.isfinite(norm):
        indices = [index for batch in batches for index in batch.indices]
        raise NotFinite("gradient", tuple(setup.plan.dataset.pictures[index].path.name for index in indices))
    good.keep(run)
    rate = float(run.optimizer.param_groups[0]["lr"])
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    run.scheduler.step()
    run.record_step(total, pictures, len(batches), rate)


class LastGood:
    """A copy of the weights that last gave finite losses, in case the next update breaks them.

    Of a schedule-free optimizer the other point (`z`) as well: the weights it would save lie between the two.
    """

    def __init__(self, run: Run) -> None:
        self._copies: list[tuple[Tensor, Tensor]] = []
        self.keep(run)

    def keep(self, run: Run) -> None:
        """Copy the weights as they are now."""
        live = [*run.network.parameters(), *(state["z"] for state in run.optimizer.state.values() if "z" in state)]
        if len(live) != len(self._copies):
            self._copies = [(tensor, tensor.detach().clone()) for tensor in live]
        for tensor, copy in self._copies:
            copy.copy_(tensor.detach())
        self.step = run.step

    def restore(self, run: Run) -> None:
        """Restore the copies, and set the run back to their step."""
        with torch.no_grad():
            for tensor, copy in self._copies:
                tensor.copy_(copy)
        run.go_back_to(self.step)


def _why(error: NotFinite, failed: int, config: OptimizerSettings) -> str:
    """Say which step failed, on what, and what to do."""
    if failed == 1:
        cause = (
            "The first step already failed, so a picture, its caption or the model itself holds values that are not "
            "numbers. Look at the pictures named, or set precision to fp32."
        )
    else:
        lora_plus = "" if config.lora_plus == 1 else f" with LoRA+ {config.lora_plus:g}"
        cause = (
            f"The learning rate {config.learning_rate:g} is probably too high for {config.optimizer}{lora_plus}. Set "
            "it to a tenth, or set precision to fp32."
        )
    names = ", ".join(error.names)
    return f"Training stopped: the {error.what} of step {failed} ({names}) is not a finite number. {cause}"


class _Pace:
    """How long the run takes: since it began, and for each of the last steps."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._times: deque[float] = deque([self._started], maxlen=21)

    def event(self, run: Run, epoch: int, epochs: int) -> StepEvent:
        """The event of the step that has just ended."""
        self._times.append(now := time.monotonic())
        per_step = (now - self._times[0]) / (len(self._times) - 1)
        return StepEvent(
            run.step, run.total, epoch, epochs, run.losses[-1], run.smoothed_loss, run.rates[-1], now - self._started,
            per_step,
        )
