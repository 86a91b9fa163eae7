"""All the state of a run between two optimizer steps, in one object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch.optim import Optimizer

from ..adapters.network import LoraNetwork
from ..config import TrainConfig
from ..errors import UserError
from ..optimizers import make_optimizer, make_scheduler
from ..plan import Plan

SMOOTHED_OVER = 100  # steps


class Diverged(UserError):
    """The loss or a gradient is no longer a finite number."""


@dataclass
class Run:
    """All the state of a run between two optimizer steps: what a step reads or changes is here.

    Attributes:
        network: The LoRA that is trained.
        optimizer: With its moments.
        scheduler: With its position.
        total: Optimizer steps planned.
        step: Optimizer steps done.
        micro_step: Micro-batches done.
        epoch: Epochs finished.
        position: Optimizer steps done in the epoch under way.
        images: Pictures seen, repeats counted.
        losses: Mean loss of each step.
        rates: Learning rate of each step.
        epoch_losses: Mean loss of each finished epoch.
        concept_losses: Mean loss of each concept in each finished epoch; regularization pictures are separate.
        epoch_total: Sum of the pictures' losses in the epoch under way.
        epoch_images: Pictures seen in the epoch under way.
        epoch_concepts: Losses of the epoch under way by concept.
    """

    network: LoraNetwork
    optimizer: Optimizer
    scheduler: Any
    total: int
    step: int = 0
    micro_step: int = 0
    epoch: int = 0
    position: int = 0
    images: int = 0
    losses: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    epoch_losses: list[float] = field(default_factory=list)
    concept_losses: dict[str, list[float]] = field(default_factory=dict)
    epoch_total: float = 0.0
    epoch_images: int = 0
    epoch_concepts: dict[str, list[float]] = field(default_factory=dict)

    @classmethod
    def start(cls, config: TrainConfig, plan: Plan, network: LoraNetwork) -> Run:
        """A run at its beginning, with a fresh optimizer and schedule.

        Raises:
            UserError: The optimizer's package is missing.
        """
        optimizer = make_optimizer(config, network)
        return cls(network, optimizer, make_scheduler(config, optimizer, plan.total), plan.total)

    @property
    def smoothed_loss(self) -> float:
        """Mean loss of the last hundred steps."""
        recent = self.losses[-SMOOTHED_OVER:]
        return sum(recent) / len(recent)

    def record_step(
        self, total: float, pictures: Sequence[tuple[str, float]], micro_batches: int, rate: float
    ) -> None:
        """Count one optimizer step.

        Args:
            total: Sum of its pictures' losses.
            pictures: The concept and loss of each picture.
            micro_batches: Number of its batches.
            rate: Its learning rate.
        """
        images = len(pictures)
        self.micro_step += micro_batches
        self.step += 1
        self.position += 1
        self.images += images
        self.losses.append(total / images)
        self.rates.append(rate)
        self.epoch_total += total
        self.epoch_images += images
        for concept, loss in pictures:
            self.epoch_concepts.setdefault(concept, []).append(loss)

    def record_epoch(self) -> None:
        """Count the epoch under way as finished."""
        self.epoch += 1
        self.epoch_losses.append(self.epoch_total / self.epoch_images)
        for concept, losses in self.epoch_concepts.items():
            self.concept_losses.setdefault(concept, []).append(sum(losses) / len(losses))
        self.position, self.epoch_total, self.epoch_images, self.epoch_concepts = 0, 0.0, 0, {}

    def go_back_to(self, step: int) -> None:
        """Forget the steps after this one, whose weights are gone."""
        self.step = step
        del self.losses[step:], self.rates[step:]
