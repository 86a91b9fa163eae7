"""One way to fit a run into memory, and the ladder of them that a run stands on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Rung:
    """One way to fit a run into memory. Each rung takes less than the one above it, and most take more time.

    The first five changes leave the numbers as they are, up to rounding.

    Attributes:
        copies: Whether weights in another dtype are copied to the compute dtype, instead of cast when used.
        checkpointing: Whether blocks are recomputed in backward.
        offloads: Whether the inputs of recomputed blocks wait in system memory.
        streams: Whether weights that do not fit stay in system memory and are sent when used.
        eight_bit: Whether the optimizer's state has 8 bits. It changes the numbers.
        micro_batch: Most pictures that go through the model together; 0 for the whole batch.
    """

    copies: bool = True
    checkpointing: bool = False
    offloads: bool = False
    streams: bool = False
    eight_bit: bool = False
    micro_batch: int = 0

    @property
    def name(self) -> str:
        """What it does, in words."""
        done = [
            "gradient checkpointing" * self.checkpointing,
            "block inputs in system memory" * self.offloads,
            "weights streamed from system memory" * self.streams,
            "8-bit optimizer state" * self.eight_bit,
            f"batches of {self.micro_batch}" * bool(self.micro_batch),
        ]
        return ", ".join(filter(None, done)) or ("plain" if self.copies else "weights cast when used")


class Ladder:
    """The rung that a run stands on, and those below it."""

    def __init__(self, rungs: Sequence[Rung]) -> None:
        self._rungs = list(rungs)
        self.rung = self._rungs.pop(0)

    @property
    def has_lower(self) -> bool:
        """Whether there is a rung below."""
        return bool(self._rungs)

    def forbid_checkpointing(self) -> None:
        """Leave it out, here and below: the model's blocks cannot be computed again."""
        plain = [replace(rung, checkpointing=False, offloads=False) for rung in (self.rung, *self._rungs)]
        self.rung, *self._rungs = dict.fromkeys(plain)

    def descend(self) -> Rung:
        """Step down one rung."""
        self.rung = self._rungs.pop(0)
        return self.rung
