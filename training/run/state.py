"""Everything that a training step reads or changes, in one object."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch.optim import Optimizer

from ..adapters.network import LoraNetwork
from ..errors import UserError


class Diverged(UserError):
    """The loss or a gradient is no longer a number."""


@dataclass
class Run:
    """All the state of a run between two optimizer steps.

    Attributes:
        network: The LoRA being trained.
        optimizer: With its moments.
        scheduler: With its position.
        total: Optimizer steps planned.
        step: Optimizer steps done.
        micro_step: Micro-batches done.
        epoch: Epochs finished.
        images: Pictures seen, repeats counted.
        losses: Mean loss of each step.
        rates: Learning rate of each step.
        epoch_losses: Mean loss of each finished epoch.
        concept_losses: The same of each concept; what is to be kept apart from what is to be learned.
    """

    network: LoraNetwork
    optimizer: Optimizer
    scheduler: Any
    total: int
    step: int = 0
    micro_step: int = 0
    epoch: int = 0
    images: int = 0
    losses: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    epoch_losses: list[float] = field(default_factory=list)
    concept_losses: dict[str, list[float]] = field(default_factory=dict)
