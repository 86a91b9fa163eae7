"""The ladder of ways to fit into memory, from the fastest to the smallest, and what a run takes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .config import MEMORY, SOURCES, TrainConfig
from .rung import Rung

GIB = 2**30
_SHARE = 0.9  # of a card's memory that a program can have; the rest is the screen's and the driver's


def rungs(
    config: TrainConfig, *, has_copies: bool, is_apart: bool, can_stream: bool, has_eight_bit: bool
) -> list[Rung]:
    """The ladder of a run, the fastest rung first.

    Args:
        config: The run's settings.
        has_copies: Whether the model has weights in another dtype than the run computes in.
        is_apart: Whether the device has memory of its own.
        can_stream: Whether weights can stay in system memory.
        has_eight_bit: Whether the 8-bit optimizers are installed.
    """
    found = [Rung(checkpointing=config.gradient_checkpointing)]

    def add(**change: bool | int) -> None:
        rung = replace(found[-1], **change)  # type: ignore[arg-type]
        if rung != found[-1]:
            found.append(rung)

    if has_copies:
        add(copies=False)
    add(checkpointing=True)
    if is_apart:
        add(offloads=True)
    if can_stream:
        add(streams=True)
    if has_eight_bit and f"{config.optimizer}8bit" in SOURCES:
        add(eight_bit=True)
    size = config.batch_size
    while size > 1:
        size = -(-size // 2)
        add(micro_batch=size)
    return found


def preset_bytes(memory: str) -> int | None:
    """Bytes that a run may take on a card of this size; None if the setting names no size."""
    assert memory in MEMORY
    return int(float(memory.removesuffix(" GB")) * GIB * _SHARE) if memory.endswith(" GB") else None


@dataclass(frozen=True)
class Need:
    """Bytes that a run takes on the device.

    Attributes:
        weights: The frozen model.
        copies: Weights in the compute dtype.
        lora: The LoRA's weights, gradients and optimizer state.
        step: What a forward and backward pass holds at once.
    """

    weights: int
    copies: int
    lora: int
    step: int

    @property
    def total(self) -> int:
        """All together."""
        return self.weights + self.copies + self.lora + self.step

    @property
    def besides(self) -> int:
        """All but the weights: what the host is asked to leave free."""
        return self.total - self.weights

    def __str__(self) -> str:
        """The parts in words."""
        parts = {"model": self.weights + self.copies, "LoRA and optimizer": self.lora, "activations": self.step}
        return ", ".join(f"{name} {in_gb(size)}" for name, size in parts.items())


def in_gb(size: float) -> str:
    """A number of bytes in words."""
    return f"{size / GIB:.1f} GB"


def lora_bytes(config: TrainConfig, elements: int, itemsize: int, *, eight_bit: bool) -> int:
    """Bytes of the LoRA's weights, gradients, last good weights, their average and optimizer state.

    Args:
        config: The run's settings.
        elements: Of all trained tensors.
        itemsize: Bytes of an element in the compute dtype.
        eight_bit: Whether the optimizer's state has 8 bits.
    """
    source = SOURCES[f"{config.optimizer}8bit" if eight_bit else config.optimizer]
    shadow = 2 * itemsize if itemsize < 4 else 0  # weights and gradients once more, in the compute dtype
    average = 4 if config.ema_decay else 0
    return int(elements * (12 + average + shadow + source.state))  # fp32: weights, gradients, last good weights
