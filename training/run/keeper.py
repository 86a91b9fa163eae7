"""Keeps what a run makes: checkpoints and losses in its folder, and the LORA_MODEL it hands on."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..config import kohya_settings
from ..data.folders import DATASETS_KEY
from ..disk import content_hash
from ..errors import UserError
from ..events import Sink
from ..files.metadata import ModelFacts, Session, build_metadata
from ..host import memory
from ..host.keys import restricted_key_map, trained_names
from ..host.model import HostModel
from ..host.origin import short_hash
from ..host.paths import without_folders
from ..host.precision import NAMES
from ..lora import LoraModel, RunSummary
from ..noise_levels import timesteps_in_force
from ..optimizers import scheduler_in_force, warmup_in_force
from ..plan import Plan
from ..review.run_report import run_report
from ..rung import Ladder
from ..watch import UNWATCHED, Watch
from .checkpoints import layers_text
from .folder import RunFolder
from .history import History
from .state import Run
from .tensorboard import TensorBoardLog
from .under_way import UnderWay, forget, listed

log = logging.getLogger(__name__)

T = TypeVar("T")

_LOSSES_EVERY = 60.0  # seconds


class Keeper:
    """Keeps one run.

    Args:
        model: What is trained on.
        plan: The run's plan, with its settings and its dataset.
        run: The run.
        precision: What the frozen model computes in.
        ladder: How the run fits into memory.
        sink: Receives the story of the run and the files that could not be written.
        encoded: How many latents and captions had to be encoded.
        started_at: Start of the run, encoding included, in seconds since 1970.
        hints: What was said before the run began.
        model_file: The file that the model was loaded from, if it is known.
        start_from: The name of the LoRA that the run began with; empty for a fresh one.
        clip_skip: From which layer of the CLIP the text comes, counted from the end; None if it was not set.
        fingerprint: By which it is found when it is asked for again; empty if it has none.
        watch: What the run is watched with.
    """

    def __init__(
        self,
        model: HostModel,
        plan: Plan,
        run: Run,
        precision: torch.dtype,
        ladder: Ladder,
        sink: Sink,
        encoded: tuple[int, int],
        started_at: float,
        hints: tuple[str, ...] = (),
        model_file: Path | None = None,
        start_from: str = "",
        clip_skip: int | None = None,
        fingerprint: str = "",
        watch: Watch = UNWATCHED,
    ) -> None:
        self.run, self.plan, self.ladder, self.sink = run, plan, ladder, sink
        self.device = model.device
        self.encoded, self.hints, self.start_from = encoded, hints, start_from
        encoders = model.text.modules if model.text else None
        layers = [(layer.path, layer.part_of) for layer in run.network.adapters]
        self.names = trained_names(model.patcher, encoders, layers)
        self.key_map = restricted_key_map(model.patcher, self.names, encoders)
        self.model = ModelFacts(
            model.family, model.prediction == "v_prediction", model.is_flow, model.flow_shift,
            model.takes_guidance, model_file.name if model_file else "", short_hash(model_file) if model_file else "",
            model.zero_terminal_snr, clip_skip,
        )  # fmt: skip
        self.in_force = settings_in_force(plan, run, model.is_flow, precision)
        self.session = Session(random.SystemRandom().getrandbits(32), started_at, 0.0, sum(map(len, plan.steps(0))))
        self.id, self.watch, self.fingerprint = f"{self.session.id:08x}", watch, fingerprint
        self.checkpoints: list[str] = []
        self.samples: list[str] = []
        self.not_saved: list[str] = []
        self.held_out: list[dict[str, Any]] = []
        self._tensorboard: TensorBoardLog | None = None
        self._end_file: Path | None = None
        self._clock = self._losses_written_at = time.monotonic()

    @contextmanager
    def opened(self, root: Path) -> Iterator[UnderWay]:
        """Make the run's folder and write its settings there; list the run as under way inside the block.

        A run that ends in whatever way says so in its history, and then holds no more than that history.
        """
        self.folder = RunFolder(root, self.plan.config.name)
        self.folder.write_config(self.plan.config)
        self._write_facts()
        self.folder.write_layers(layers_text(self.names.values(), self.key_map))
        self.history = History(self.id, self.sink, self.folder.append_log, self._note)
        names = {self.plan.dataset.concept_of(picture): None for picture in self.plan.dataset.pictures}
        # Listed before its first line: a page that gets the line asks for the run at once.
        with listed(UnderWay(self.id, self.folder.name, self.folder.path, self.watch.place, self.history)) as run:
            self.history.add(
                "begin", name=self.folder.name, steps=self.run.total, epochs=self.plan.epochs,
                time=self.session.started_at, pictures=len(self.plan.dataset.pictures), concepts=list(names),
                samples=self.watch.samples is not None,
            )  # fmt: skip
            for hint in self.hints:
                self.history.add("hint", text=hint)
            if self.plan.config.tensorboard:
                self._tensorboard = TensorBoardLog(self.folder.path, self.hint)
                self.history.listeners.append(self._tensorboard.take)
            try:
                yield run
            except BaseException:
                if not self.history.has_ended:
                    self._end("failed")
                raise
            finally:
                self._close_tensorboard()
                self.history.close()

    def discard(self, outcome: str = "discarded") -> None:
        """Remove the folder and forget the run.

        Args:
            outcome: What its panel says: `discarded` or `failed`.
        """
        self.history.add("end", outcome=outcome, step=self.run.step, seconds=0.0)
        self._close_tensorboard()  # Windows removes no file that is open
        self.folder.discard()
        forget(self.id)

    def _close_tensorboard(self) -> None:
        if self._tensorboard:
            self._tensorboard.close()

    def _write_facts(self, **more: Any) -> None:
        """Write what identifies the run, so that it is found again."""
        place, started = vars(self.watch.place), self.session.started_at
        facts = {"id": self.id, "name": self.folder.name, **place, "started_at": started}
        self.folder.write_run({**facts, "fingerprint": self.fingerprint, **more})

    def after_step(self, run: Run, epoch_ended: bool) -> None:
        """Save what is due after an optimizer step."""
        every_steps, every_epochs = self.plan.config.save_every_steps, self.plan.config.save_every_epochs
        last = run.step >= run.total
        # The end of the run has a file of its own, without a number, as kohya names them.
        if every_steps and run.step % every_steps == 0 and not last:
            self._checkpoint(f"-step{run.step:08d}")
        if epoch_ended and every_epochs and run.epoch % every_epochs == 0 and not last:
            self._checkpoint(f"-{run.epoch:06d}")
        if epoch_ended:
            concepts = {name: losses[-1] for name, losses in run.concept_losses.items()}
            self.history.add(
                "epoch", step=run.step, epoch=run.epoch, loss=run.epoch_losses[-1], concepts=concepts
            )
            self._write_losses_seldom()
        self.history.memory(self.ladder.rung.name, lambda: memory.peak(self.device), run.step, last)

    def _write_losses_seldom(self) -> None:
        """Write the losses, the whole file of them, once in a while: an epoch can be short and a run long."""
        now = time.monotonic()
        if now - self._losses_written_at >= _LOSSES_EVERY:
            self._losses_written_at = now
            self._keep(lambda: self.folder.write_losses(self.run.losses, self.run.rates))

    def hint(self, sentence: str) -> None:
        """Say what stays in view until the end of the run, and is in its summary."""
        self.hints += (sentence,)
        self.history.hint(sentence)

    def measured(self, **line: Any) -> None:
        """Take note of the loss of the held-out pictures."""
        self.held_out.append(line)
        self.history.add("held_out", **line)

    def save_now(self) -> None:
        """Save a checkpoint outside of the usual turn."""
        self._checkpoint(f"-step{self.run.step:08d}")

    def save_end(self) -> None:
        """Save the LoRA after the last step; `finish` writes the same file again with all that is known then.

        Raises:
            NotFinite: A step was not finite.
        """
        self.run.read_all()
        self._end_file = self._keep(lambda: self.folder.save(self.lora()))

    def finish(self, outcome: str) -> tuple[LoraModel, RunSummary]:
        """Write the final LoRA, the losses and the summary, and say how the run went.

        Args:
            outcome: `finished`, `cancelled` or `stopped`.
        """
        lora = self.lora()
        file = self._keep(lambda: self.folder.save(lora))
        self._keep(lambda: self.folder.write_losses(self.run.losses, self.run.rates))
        summary = self._summary(outcome)
        self._keep(lambda: self.folder.write_summary(summary))
        self._report(summary)
        self._end(outcome, file)
        self.sink.tell(summary.describe())
        log.info("LoRA Workbench: %s after %d steps; the run is in %s", outcome, summary.steps, self.folder.path)
        return lora, summary

    def rescue(self, error: BaseException) -> None:
        """Keep what was trained when a run breaks off, and say where it is."""
        run = self.run
        log.error("LoRA Workbench: training broke off after step %d: %s", run.step, error)
        if run.step == 0:
            self.discard("failed")
            return
        path = self._keep(lambda: self.folder.save(self._rescued(), "-last-good"))
        self._keep(lambda: self.folder.write_losses(run.losses, run.rates))
        summary = self._summary("failed")
        self._keep(lambda: self.folder.write_summary(summary))
        self._report(summary)
        self._end("failed")
        note = f"The LoRA as it was after step {run.step} is in {path}." if path else self.not_saved[-1]
        if isinstance(error, UserError):
            error.args = (f"{error} {note}",)
        else:
            log.error("LoRA Workbench: %s", note)

    def _rescued(self) -> LoraModel:
        """The LoRA as it is now.

        Raises:
            UserError: It cannot be read any more.
        """
        try:
            return self.lora()
        except Exception as error:  # of the device, which an error of CUDA leaves unusable
            log.exception("LoRA Workbench: the LoRA could not be read")
            saved = self._end_file or next((Path(name) for name in reversed(self.checkpoints)), None)
            where = f"The last one saved is {saved}" if saved else "Set save_every_epochs to save LoRAs in between"
            what = f"The LoRA could not be read from the device after step {self.run.step}."
            raise UserError(f"{what} {where}.") from error

    def lora(self) -> LoraModel:
        """The LoRA as it is now, with the metadata of the run so far."""
        settings = kohya_settings(self.plan.config, {**self.in_force, **self._present()})
        session = replace(self.session, finished_at=time.time())
        if self.start_from:
            settings["lora_workbench.start_from"] = self.start_from
        metadata = build_metadata(settings, self._summary("running"), self.plan.dataset, self.model, session)
        return self.lora_model(metadata)

    def _present(self) -> dict[str, Any]:
        """What can change during a run, by the name of its setting."""
        rung = self.ladder.rung
        return {
            "name": self.folder.name, "optimizer": self.run.optimizer_name, "memory": rung.name,
            "gradient_checkpointing": rung.checkpointing,
        }  # fmt: skip

    def lora_model(self, metadata: dict[str, str]) -> LoraModel:
        """The LoRA as it is now, under kohya's names, with this metadata."""
        names = {path: layer.kohya for path, layer in self.names.items()}
        with self.run.weights_to_keep():
            tensors = self.run.network.saved_tensors(names)
        return LoraModel(tensors, {layer.kohya: layer for layer in self.names.values()}, metadata, self.key_map)

    def _summary(self, outcome: str) -> RunSummary:
        run = self.run
        failed = outcome == "failed"
        latents, captions = (0, 0) if failed else self.encoded
        seconds = time.time() - self.session.started_at if failed else time.monotonic() - self._clock
        return RunSummary(
            name=self.folder.name, folder=str(self.folder.path), losses=tuple(run.losses),
            epoch_losses=tuple(run.epoch_losses),
            concept_losses={name: tuple(losses) for name, losses in run.concept_losses.items()},
            steps=run.step, epochs=run.epoch, images=run.images,
            checkpoints=tuple(self.checkpoints), outcome=outcome, seconds=seconds,
            encoded_latents=latents, encoded_captions=captions, skipped=self.plan.dataset.skipped,
            not_saved=tuple(dict.fromkeys(self.not_saved)), seed=self.plan.config.seed, hints=self.hints,
            memory=self.ladder.rung.name, id=self.id, samples=tuple(self.samples), held_out=tuple(self.held_out),
        )  # fmt: skip

    def _checkpoint(self, suffix: str) -> None:
        path = self._keep(lambda: self.folder.save(self.lora(), suffix))
        if path and str(path) not in self.checkpoints:
            self.checkpoints.append(str(path))
            self.history.add("checkpoint", step=self.run.step, epoch=self.run.epoch, file=path.name)

    def _end(self, outcome: str, file: Path | None = None) -> None:
        """Say in the log and in the run's facts how it ended, and what its final LoRA is by its content."""
        run, seconds = self.run, round(time.time() - self.session.started_at, 1)
        facts: dict[str, Any] = {"outcome": outcome, "steps": run.step, "epochs": run.epoch, "seconds": seconds}
        facts["optimizer"] = run.optimizer_name
        loss = run.smoothed_loss if run.read else None
        if file:
            with suppress(OSError):  # gone or unreadable already; the run is then not found again
                facts["file_hash"] = content_hash(file)
        self._keep(lambda: self._write_facts(**facts, loss=loss))
        self.history.add("end", outcome=outcome, step=run.step, seconds=seconds)

    def _report(self, summary: RunSummary) -> None:
        """Write the run's report; a picture that cannot be drawn costs the report alone."""
        try:
            page = run_report(
                summary, self.history.told(), self.plan.config, {**self.in_force, **self._present()},
                self.plan.dataset, self.session.started_at, lambda text: without_folders(text, DATASETS_KEY),
            )  # fmt: skip
        except Exception:
            log.exception("LoRA Workbench: the report of %s could not be made", self.folder.name)
            return
        self._keep(lambda: self.folder.write_report(page))

    def _keep(self, write: Callable[[], T]) -> T | None:
        """Write a file of the run. If that fails, say so and go on: a file is worth less than hours of training."""
        try:
            return write()
        except UserError as error:
            self._note(error)
            return None

    def _note(self, error: UserError) -> None:
        """Take note of a file that could not be written."""
        log.error("LoRA Workbench: %s", error)
        sentence = without_folders(str(error), DATASETS_KEY)  # every page sees it
        if sentence not in self.not_saved:
            self.not_saved.append(sentence)
            self.history.hint(sentence)


def settings_in_force(plan: Plan, run: Run, is_flow: bool, precision: torch.dtype) -> dict[str, Any]:
    """The values that took effect where a setting is `auto`, or 0 and stands for another value, by name."""
    config = plan.config
    return {
        "epochs": plan.epochs,
        "steps": run.total,
        "rank": _common({adapter.rank for adapter in run.network.adapters}),
        "alpha": _common({adapter.alpha for adapter in run.network.adapters}),
        "scheduler": scheduler_in_force(config),
        "warmup_steps": warmup_in_force(config, run.total),
        "timesteps": timesteps_in_force(config.timesteps, is_flow),
        "precision": NAMES[precision],
    }


def _common(values: set[Any]) -> Any:
    """The one value of all layers, or what kohya's tools write where they differ."""
    return values.pop() if len(values) == 1 else "Dynamic"
