"""A model that is ready to train: differentiable, tried with the largest batch, on a rung that fits into memory."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from .adapters.flat import DENOISER
from .errors import NotRecomputable, UserError
from .events import SilentSink
from .fit import Fit
from .host import memory
from .host.frozen import Differentiable
from .host.model import HostModel
from .host.out_of_memory import is_out_of_memory
from .loop import optimizer_step
from .run.state import Run
from .step import Setup, training_step

log = logging.getLogger(__name__)


@dataclass
class Ready:
    """What is ready to train.

    Attributes:
        model: The model.
        setup: The parts of a step.
        made: The model made differentiable.
        fit: How it fits into memory.
        run: The run at its beginning; there is none before the first `settle`.
        seconds: How long the trial step took.
    """

    model: HostModel
    setup: Setup
    made: Differentiable
    fit: Fit
    run: Run = field(init=False)
    seconds: float = 0.0

    @contextmanager
    def left(self, smaller: Callable[[str], None] = lambda rung: None) -> Iterator[None]:
        """Give the model back inside the block, between any two steps, and take it again after it.

        Inside, the host may sample with the model, move it or load another. Training goes on as if nothing had been,
        and the model is taken again after an error too: other weights, such as a LoRA on it, must not stay.

        Args:
            smaller: Receives what is done from now on, if the model no longer fits as it did.

        Raises:
            UserError: Not even the last rung fits any more.
        """
        self.made.leave()
        try:
            yield
        finally:
            memory.let_go(self.model.modules())  # what an error inside left on layers
            memory.make_way(self.model)
            with torch.inference_mode(False):
                if not self._enters():
                    smaller(self.step_down())  # outside of the error's block, whose traceback holds memory
            memory.begin_peak(self.model.device)  # what was done inside is none of training's

    def begin(self) -> None:
        """Enter the model, try a whole optimizer step, and start the run.

        Raises:
            UserError: Not even the last rung fits.
        """
        self._settle(self._try_update)
        self.run = self._fresh_run()

    def step_down(self) -> str:
        """Take the next rung in the middle of a run, after an out-of-memory error.

        Returns:
            What is done from now on.

        Raises:
            UserError: There is no further rung, or none fits.
        """
        self._give_up()
        self._settle(self._try_passes)
        return self.fit.ladder.rung.name

    def _settle(self, trial: Callable[[], None]) -> None:
        """Enter the model and try the largest batch, one rung lower each time that memory does not suffice."""
        while not self._works(trial):
            self._give_up()

    def _give_up(self) -> None:
        """Leave the rung for the next one."""
        self.made.leave()
        memory.let_go(self.model.modules())
        memory.free_memory()
        before = self.fit.ladder.rung.name
        self.fit.descend(self._held)
        log.info("LoRA Workbench: out of memory (%s); tries %s", before, self.fit.ladder.rung.name)

    def _works(self, trial: Callable[[], None]) -> bool:
        memory.free_memory()
        most = memory.begin_peak(self.model.device)
        try:
            if hasattr(self, "run") and self.fit.config_in_force.optimizer != self.run.optimizer_name:
                self.run.change_optimizer(self.fit.config_in_force)  # before the trial, which needs what it frees
            self._load()
            self.made.rung = self.fit.ladder.rung
            self.made.enter()
            self.made.rehearse(trial)
        except NotRecomputable:
            if self.setup.plan.config.gradient_checkpointing:
                raise
            self.made.leave()
            self.fit.ladder.forbid_checkpointing()
            return self._works(trial)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return False
        if memory.has_spilled(self.model.device, most):
            return not self.fit.ladder.has_lower
        if (taken := memory.peak(self.model.device)) is not None:
            log.info("LoRA Workbench: the trial step took %.1f GB at most", taken / 2**30)
        return True

    def _enters(self) -> bool:
        """Load and enter the model on its rung; False if memory does not suffice."""
        try:
            self._load()
            self.made.enter()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return False
        return True

    def _load(self) -> None:
        with torch.inference_mode():  # as the host runs nodes: what it loads stays as it makes it
            self.fit.load(self._held)

    @property
    def _held(self) -> int:
        """Bytes of the LoRA's state that are taken already."""
        return self.fit.state if hasattr(self, "run") else self.setup.network.flat.size

    def _fresh_run(self) -> Run:
        is_scaled = self.setup.precision == torch.float16
        return Run.start(self.fit.config_in_force, self.setup.plan, self.setup.network, is_scaled=is_scaled)

    def _try_update(self) -> None:
        """Train one step, which makes the optimizer's state too, and undo it."""
        flat = self.setup.network.flat
        start = flat.master.to("cpu", copy=True)
        run = self._fresh_run()
        run.micro_step, batch = self.setup.plan.largest()
        try:
            self._timed(lambda: optimizer_step(self.setup, run, [batch], SilentSink()))
            self._refuse_deaf()
        finally:
            flat.master.copy_(start)
            flat.begin_step()

    def _refuse_deaf(self) -> None:
        """Refuse a text encoder that no gradient reaches, after a trial step.

        Raises:
            UserError: Names the setting that turns it off.
        """
        flat = self.setup.network.flat
        parts = {part: 0.0 for part, _ in flat.groups}
        for (part, _), at in flat.groups.items():
            parts[part] += float(flat.total[at].abs().sum())
        if parts.pop(DENOISER) == 0:
            return  # nothing to learn from this batch, such as prior preservation before the first step
        for part, total in parts.items():
            if total == 0:
                label = part.replace("_", " ")
                raise UserError(
                    f"The text encoders of {label} get no gradient through ComfyUI's encoding, so they cannot be "
                    f"trained. Turn {label} off in Text Encoder Options."
                )

    def _try_passes(self) -> None:
        """Run the largest batch forward and backward; the run stays where it is."""
        flat = self.setup.network.flat
        micro_step, batch = self.setup.plan.largest()
        try:
            flat.begin_step()
            self._timed(lambda: training_step(self.setup, batch, micro_step))
        finally:
            flat.begin_step()

    def _timed(self, step: Callable[[], object]) -> None:
        begun = time.monotonic()
        step()
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        self.seconds = time.monotonic() - begun
