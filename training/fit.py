"""Fits a run into memory: what each rung of the ladder takes, what there is, and which rung is taken."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from .adapters.lora import Trained, count_numbers
from .cache.captions import CaptionStore
from .config import TrainConfig
from .data.batches import Batch
from .dry_run import DryRun
from .errors import UserError
from .events import Cancelled
from .host import memory
from .host.model import HostModel
from .host.progress import is_host_interrupt
from .ladder import GIB, Need, in_gb, lora_bytes, preset_bytes, rungs
from .plan import Plan
from .rung import Ladder, Rung

log = logging.getLogger(__name__)

# A step keeps at most about this many times what the host reckons a forward pass takes (Flux at 1024 px: 32).
_ROUGHLY, _ROUGHLY_RECOMPUTED = 40, 8
_OBVIOUS = 0.5  # share of the memory below which a run fits even by the rough figure
_WORKSPACE, _FRAGMENTS = GIB // 4, 1.05  # what kernels need for themselves, and what lies unused between tensors
_LEAST_WEIGHTS = 0.05  # share of the weights that streaming keeps on the device: about a block
_LESS = 0.9  # of what was thought to be free, after an out-of-memory error


@dataclass(frozen=True)
class Choice:
    """The rung that fits into some memory.

    Attributes:
        rung: The rung; the last one if none fits.
        need: What a run takes on it.
        taken: Bytes of that; streamed weights take what is left, at most.
        fits: Whether it fits.
    """

    rung: Rung
    need: Need
    taken: int
    fits: bool


class Fit:
    """How one run fits into memory.

    Args:
        model: The model, loaded or not.
        plan: The run's plan.
        captions: The captions of `largest`.
        largest: The batch that takes the most memory, and before it its number in the run.
        latent: Shape of its latents [1, C, (T,) h, w].
        precision: The compute dtype.
        layers: What is trained.
        only: The one rung to stand on; None for the whole ladder.

    Attributes:
        ladder: The rung taken and those below it.
        given: Bytes that the run may take, the model included; None if the device does not tell.
        budget: The same, less after each out-of-memory error.
        config: The run's settings.
    """

    def __init__(
        self, model: HostModel, plan: Plan, captions: CaptionStore, largest: tuple[int, Batch], latent: tuple[int, ...],
        precision: torch.dtype, layers: Sequence[Trained], only: Rung | None = None,
    ) -> None:  # fmt: skip
        self.config: TrainConfig = plan.config
        self._model, self._precision, self._latent = model, precision, latent
        self._micro_step, self._batch = largest
        self._make_dry = lambda: DryRun(model, plan, captions, {self._batch.bucket: latent}, precision, layers)
        self._dry: DryRun | None = None
        self._is_rough = False
        self._peaks: dict[tuple[bool, bool, int], int] = {}
        self._weights = memory.weights_bytes(model)
        self._copies, self._largest = memory.copies_bytes(model, precision)
        self._numbers = count_numbers(layers)
        self.budget: int | None = None
        self.given: int | None = None
        self._is_only = only is not None
        self._has_plenty = False  # so that nothing need be counted
        text = memory.text_bytes(model)  # that the host keeps on the device
        self._least = text + int(_LEAST_WEIGHTS * (self._weights - text))
        self._kept = self._weights  # of a streamed model on the device
        self.ladder = Ladder([only] if only else self.rungs())

    def rungs(self, is_apart: bool | None = None) -> list[Rung]:
        """The whole ladder.

        Args:
            is_apart: Whether the device has memory of its own; None: as the model's device.
        """
        return rungs(
            self.config, has_copies=self._copies > 0, is_apart=self._is_apart(is_apart),
            can_stream=memory.can_stream(self._model) if is_apart is None else is_apart,
            has_eight_bit=importlib.util.find_spec("bitsandbytes") is not None,
        )  # fmt: skip

    # -- what a rung takes -------------------------------------------------------------------

    def _is_apart(self, given: bool | None) -> bool:
        return memory.is_apart(self._model.device) if given is None else given

    def need(self, rung: Rung, is_apart: bool | None = None) -> Need:
        """What a run takes on a rung; `is_apart` as in `rungs`."""
        state = lora_bytes(self.config, self._numbers, self._precision.itemsize, eight_bit=rung.eight_bit)
        step = self._step(rung)
        if self._is_apart(is_apart):
            step = int(step * _FRAGMENTS) + _WORKSPACE
        if not rung.copies:
            step += self._largest  # one weight at a time, in the compute dtype
        return Need(self._weights, self._copies * rung.copies, state, step)

    def _step(self, rung: Rung) -> int:
        """Bytes that a forward and backward pass holds."""
        key = rung.checkpointing, rung.offloads, rung.micro_batch
        if key not in self._peaks:
            self._peaks[key] = self._count(rung)
        return self._peaks[key]

    def _count(self, rung: Rung) -> int:
        if not self._is_rough:
            try:
                self._dry = self._dry or self._make_dry()
                return self._dry.peak(self._micro_step, self._batch, rung)
            except Exception as error:
                if isinstance(error, Cancelled) or is_host_interrupt(error):
                    raise
                log.warning("LoRA Workbench: the memory of a step is a rough figure: %s", error)
                self._is_rough = True
        return self._rough(rung)

    def _rough(self, rung: Rung) -> int:
        count = min(rung.micro_batch or len(self._batch), len(self._batch))
        kept = _ROUGHLY_RECOMPUTED if rung.checkpointing else _ROUGHLY
        return kept * self._model.estimated((count, *self._latent[1:]))

    # -- which rung is taken -----------------------------------------------------------------

    def found_budget(self) -> int | None:
        """Bytes that the run may take now, the model included; None if the device does not tell."""
        free = memory.available(self._model)
        return min(filter(None, (preset_bytes(self.config.memory), free)), default=None)

    def choose(self) -> str:
        """Take the first rung that fits by the estimate.

        Returns:
            What was taken and why, in a sentence.

        Raises:
            UserError: The memory that was set is less than the last rung takes.
        """
        self.budget = self.given = self.found_budget()
        if self.budget is None or self._is_only or self.config.memory == "plenty":
            return f"Memory: {self.ladder.rung.name}."
        first = self.ladder.rung
        self._has_plenty = self._is_obvious(first)
        if self._has_plenty:
            return f"Memory: {first.name}; {in_gb(self.budget)} are more than enough."
        choice = self.choice(self.budget)
        if not (choice.fits or self.is_rough) and self.budget == preset_bytes(self.config.memory):
            raise UserError(
                f"memory is {self.config.memory}, which leaves {in_gb(self.budget)} to training, but this run takes at "
                f"least {in_gb(choice.taken)} ({choice.need}). {self._help(choice.need)}"
            )  # what is free is another matter: the trial step decides
        while self.ladder.rung != choice.rung:
            self.ladder.descend()
        self._kept = max(self._least, min(self._weights, self.budget - choice.need.besides))
        is_first = choice.rung == first
        why = "" if is_first else f" {first.name.capitalize()} would take {in_gb(self.need(first).total)}."
        taken, given = in_gb(choice.taken), in_gb(self.budget)
        return f"Memory: {choice.rung.name}, about {taken} of {given} ({choice.need}).{why}"

    @property
    def is_rough(self) -> bool:
        """Whether the model's code could not be counted, so that a step's memory is a rough figure."""
        return self._is_rough

    def choice(self, budget: int | None, is_apart: bool | None = None) -> Choice:
        """What would be taken if a run had this many bytes; the ladder stays where it is.

        Args:
            budget: Bytes that the run may take, the model included; None: as many as it takes.
            is_apart: As in `rungs`.
        """
        for rung in self.rungs(is_apart):
            need = self.need(rung, is_apart)
            taken = self._taken(need, rung, budget)
            fits = budget is None or taken <= budget
            if fits or (self.is_rough and rung.streams):  # no rough figure is worth other numbers
                break
        return Choice(rung, need, taken, fits)

    def _is_obvious(self, rung: Rung) -> bool:
        assert self.budget is not None
        state = lora_bytes(self.config, self._numbers, self._precision.itemsize, eight_bit=False)
        return self._weights + self._copies + state + self._rough(rung) < _OBVIOUS * self.budget

    def _taken(self, need: Need, rung: Rung, budget: int | None) -> int:
        """Bytes that a run takes; streamed weights take what is left of the budget, at most."""
        if not rung.streams or budget is None:
            return need.total
        return max(need.besides + self._least, min(need.total, budget))

    def _help(self, need: Need) -> str:
        """The one setting that helps most."""
        if need.weights + need.copies > (self.budget or 0) and not self.ladder.rung.streams:
            return "Load a smaller file of this model, such as fp8."
        if need.lora > need.step and self.config.rank > 1:
            return f"Set rank to {max(1, self.config.rank // 2)}."
        if self._precision == torch.float32 and self.config.precision == "fp32":
            return "Set precision to bf16."
        width, height = self._batch.bucket
        return f"Lower resolution in Bucket Images; the largest bucket is {width}×{height}."

    # -- what the device is asked for --------------------------------------------------------

    @property
    def state(self) -> int:
        """Bytes of the LoRA's weights, gradients and optimizer state on the rung taken."""
        eight_bit = self.ladder.rung.eight_bit
        return lora_bytes(self.config, self._numbers, self._precision.itemsize, eight_bit=eight_bit)

    def load(self, held: int = 0) -> None:
        """Have the host load the model for the rung taken. Call it in inference mode, as the host runs nodes.

        Args:
            held: Bytes of the LoRA's state that are taken already.
        """
        rung = self.ladder.rung
        if self._is_only:
            memory.load(self._model, 0, self._least if rung.streams else None)
            return
        besides = self._rough(rung) + self.state if self._has_plenty else self.need(rung).besides
        memory.load(self._model, max(0, besides - min(held, self.state)), self._kept if rung.streams else None)

    def descend(self, held: int = 0) -> None:
        """Do something else after an out-of-memory error: stream more weights, or take the next rung.

        Args:
            held: Bytes of the LoRA's state that are taken already.

        Raises:
            UserError: Nothing is left to do.
        """
        self._has_plenty = False
        if self.budget is not None:
            now = memory.available(self._model)
            self.budget = int(_LESS * min(self.budget, self.budget if now is None else now + held))
        if self.ladder.rung.streams and self._kept > self._least:
            self._kept = max(self._least, self._kept // 2)
            return
        if not self.ladder.has_lower:
            need = self.need(self.ladder.rung)
            free = "" if self.given is None else f" and {in_gb(self.given)} are free"
            raise UserError(
                f"Out of memory. The smallest way to train takes about {in_gb(self._least_taken(need))}{free} "
                f"({self.ladder.rung.name}; {need}). {self._help(need)}"
            )
        was_streaming = self.ladder.rung.streams
        self.ladder.descend()
        if self.ladder.rung.streams and not was_streaming:
            self._kept = max(self._least, self._weights // 2)  # all of them did not fit

    def _least_taken(self, need: Need) -> int:
        return need.besides + self._least if self.ladder.rung.streams else need.total

    @property
    def config_in_force(self) -> TrainConfig:
        """The settings with the optimizer that is used."""
        name = f"{self.config.optimizer}8bit" if self.ladder.rung.eight_bit else self.config.optimizer
        return replace(self.config, optimizer=name)
