"""All the state of a run between two optimizer steps, in one object."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from torch.optim import Optimizer

from ..adapters.network import Network
from ..config import TrainConfig
from ..data.batches import Batch
from ..errors import UserError
from ..guard import Guard
from ..late import Late
from ..optimizers import make_optimizer, make_scheduler, take_over_state, weights_to_keep
from ..plan import Plan

SMOOTHED_OVER = 100  # steps
REMEMBERED = 16  # steps: more than can be under way


class Diverged(UserError):
    """The loss or a gradient is no longer a finite number."""


class NotFinite(ArithmeticError):
    """A step was not finite.

    Args:
        step: The step, from 1.
        what: `loss` or `gradient`.
        batches: Its batches, each with its number in the run.
    """

    def __init__(self, step: int, what: str, batches: tuple[tuple[int, Batch], ...]) -> None:
        super().__init__(f"the {what} of step {step} is not a finite number")
        self.step, self.what, self.batches = step, what, batches


@dataclass(frozen=True)
class Unread:
    """A step that is done on the device and whose losses are not read yet.

    Attributes:
        step: Its number, from 1.
        values: The loss of each picture, then whether it or a step before it was not finite (1 or 0).
        concepts: What each picture's loss is counted for.
        batches: Its batches, each with its number in the run.
        on_read: Called when its losses are read.
    """

    step: int
    values: Late
    concepts: tuple[str, ...]
    batches: tuple[tuple[int, Batch], ...]
    on_read: Callable[[], None]


@dataclass
class Run:
    """All the state of a run between two optimizer steps: what a step reads or changes is here.

    Attributes:
        network: The LoRA that is trained.
        optimizer: With its moments.
        scheduler: With its position.
        guard: Of the weights.
        total: Optimizer steps planned.
        optimizer_name: As in the settings.
        step: Optimizer steps done.
        micro_step: Micro-batches done.
        epoch: Epochs finished.
        position: Optimizer steps done in the epoch under way.
        images: Pictures seen, repeats counted.
        read: Mean loss of each step whose losses were read.
        unread: The steps after them.
        latest: Mean loss by concept of the step that was read last.
        rates: Learning rate of each step.
        epoch_losses: Mean loss of each finished epoch.
        concept_losses: Mean loss of each concept in each finished epoch; regularization pictures are separate.
        epoch_total: Sum of the pictures' losses in the epoch under way.
        epoch_images: Pictures seen in the epoch under way.
        epoch_concepts: Losses of the epoch under way by concept.
    """

    network: Network
    optimizer: Optimizer
    scheduler: Any
    guard: Guard
    total: int
    optimizer_name: str = ""
    step: int = 0
    micro_step: int = 0
    epoch: int = 0
    position: int = 0
    images: int = 0
    read: list[float] = field(default_factory=list)
    unread: deque[Unread] = field(default_factory=deque)
    latest: dict[str, float] = field(default_factory=dict)
    rates: list[float] = field(default_factory=list)
    epoch_losses: list[float] = field(default_factory=list)
    concept_losses: dict[str, list[float]] = field(default_factory=dict)
    epoch_total: float = 0.0
    epoch_images: int = 0
    epoch_concepts: dict[str, list[float]] = field(default_factory=dict)
    _counts: deque[tuple[int, int, int, int]] = field(default_factory=lambda: deque(maxlen=REMEMBERED))

    @classmethod
    def start(cls, config: TrainConfig, plan: Plan, network: Network, is_scaled: bool) -> Run:
        """A run at its beginning, with a fresh optimizer and schedule.

        Args:
            config: The run's settings.
            plan: The run's plan.
            network: What is trained.
            is_scaled: Whether the loss is scaled, for fp16.

        Raises:
            UserError: The optimizer's package is missing.
        """
        optimizer = make_optimizer(config, network)
        guard = Guard(network.flat, optimizer, is_scaled, config.ema_decay)
        scheduler = make_scheduler(config, optimizer, plan.total)
        return cls(network, optimizer, scheduler, guard, plan.total, optimizer_name=config.optimizer)

    def change_optimizer(self, config: TrainConfig) -> None:
        """Go on with the 8-bit form of the optimizer; its state is what the run's has come to, in 8 bits."""
        optimizer = make_optimizer(config, self.network)
        take_over_state(self.optimizer, optimizer)
        scheduler = make_scheduler(config, optimizer, self.total)
        scheduler.load_state_dict(self.scheduler.state_dict())
        for group, old in zip(optimizer.param_groups, self.optimizer.param_groups, strict=True):
            group["lr"] = old["lr"]
        self.guard.change_optimizer(optimizer)
        self.optimizer, self.scheduler, self.optimizer_name = optimizer, scheduler, config.optimizer

    def stop(self, parts: frozenset[str]) -> None:
        """Let parts of the LoRA learn no more. A rate of 0 alone would not stop every optimizer."""
        for group in self.optimizer.param_groups:
            for weight in group["params"] if group.get("part") in parts else ():
                weight.grad = None

    def weights_to_keep(self) -> AbstractContextManager[None]:
        """Show, inside the block, the weights that files and later nodes get; training goes on from its own."""
        return self.guard.averaged() if self.guard.averages else weights_to_keep(self.optimizer)

    @property
    def smoothed_loss(self) -> float:
        """Mean loss of the last hundred steps that were read."""
        recent = self.read[-SMOOTHED_OVER:]
        return sum(recent) / len(recent)

    @property
    def losses(self) -> list[float]:
        """Mean loss of each step done; waits for the last ones.

        Raises:
            NotFinite: A step was not finite.
        """
        self.read_all()
        return self.read

    def count_step(self, unread: Unread, rate: float) -> None:
        """Count one optimizer step, whose losses are read later.

        Args:
            unread: Its losses.
            rate: Its learning rate.
        """
        self.micro_step += len(unread.batches)
        self.step += 1
        self.position += 1
        self.images += len(unread.concepts)
        self.rates.append(rate)
        self.unread.append(unread)
        self._counts.append((self.step, self.micro_step, self.position, self.images))

    def read_arrived(self, most: int) -> None:
        """Read the losses that have arrived, and wait for the oldest while more than `most` are under way.

        Raises:
            NotFinite: A step was not finite.
        """
        while self.unread and (self.unread[0].values.has_arrived or len(self.unread) > most):
            self._read_next()

    def read_all(self) -> None:
        """Read the losses of every step done.

        Raises:
            NotFinite: A step was not finite.
        """
        while self.unread:
            self._read_next()

    def failure(self) -> NotFinite | None:
        """Read what is under way when a run breaks off; return the failure of a step that was not finite."""
        try:
            self.read_all()
        except NotFinite as error:
            return error
        except RuntimeError:  # of the device: what broke the run off is the better story
            self.go_back_to(len(self.read))
        return None

    def _read_next(self) -> None:
        step = self.unread.popleft()
        *losses, is_lost = step.values.values()
        if is_lost:
            what = "gradient" if all(map(math.isfinite, losses)) else "loss"
            self.unread.clear()
            raise NotFinite(step.step, what, step.batches)
        total = sum(losses)
        self.read.append(total / len(losses))
        self.epoch_total += total
        self.epoch_images += len(losses)
        found: dict[str, list[float]] = {}
        for concept, loss in zip(step.concepts, losses, strict=True):
            found.setdefault(concept, []).append(loss)
            self.epoch_concepts.setdefault(concept, []).append(loss)
        self.latest = {concept: sum(values) / len(values) for concept, values in found.items()}
        step.on_read()

    def record_epoch(self) -> None:
        """Count the epoch under way as finished."""
        self.read_all()
        self.epoch += 1
        self.epoch_losses.append(self.epoch_total / self.epoch_images)
        for concept, losses in self.epoch_concepts.items():
            self.concept_losses.setdefault(concept, []).append(sum(losses) / len(losses))
        self.position, self.epoch_total, self.epoch_images, self.epoch_concepts = 0, 0.0, 0, {}

    def go_back_to(self, step: int) -> None:
        """Forget the steps after this one, whose weights are gone."""
        known = {number: counts for number, *counts in self._counts}
        self.step = step
        self.micro_step, self.position, self.images = known.get(step, (0, 0, 0))
        self.unread.clear()
        del self.read[step:], self.rates[step:]
