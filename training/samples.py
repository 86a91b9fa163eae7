"""The samples of a run: pictures that it makes of itself, along the user's own sampling path."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from PIL import Image

from .data.folders import DATASETS_KEY
from .errors import UserError
from .events import Cancelled
from .host import memory
from .host.out_of_memory import is_out_of_memory
from .host.paths import without_folders
from .host.progress import is_host_interrupt
from .host.sampling import Painter, size_of
from .lora import LoraModel
from .prompts import Prompt
from .ready import Ready
from .run.folder import SAMPLES
from .run.keeper import Keeper
from .run.state import Run
from .run.under_way import UnderWay
from .watch import Watch

log = logging.getLogger(__name__)

T = TypeVar("T")

_NONE = "This run has no prompts, so it cannot make samples. Connect Sample Prompts to LoRA Trainer."


class Samples:
    """Makes the samples of a run, as a watcher between two steps. What goes wrong costs the sample, not the run.

    Args:
        keeper: Keeps what the run makes.
        ready: What is trained.
        clip: CLIP socket.
        vae: VAE socket.
        watch: Which samples, and what their files carry.
        under_way: Says whether the user wants the run to end, which leaves out the samples that are not painted yet.
    """

    wish = "sample"

    def __init__(self, keeper: Keeper, ready: Ready, clip: Any, vae: Any, watch: Watch, under_way: UnderWay) -> None:
        self._keeper, self._ready, self._clip, self._vae = keeper, ready, clip, vae
        self._options, self._texts = watch.samples, watch.picture_metadata
        self._prompts = self._options.lines() if self._options else ()
        self._under_way = under_way
        self._said: set[str] = set()

    def is_due(self, run: Run, epoch_ended: bool) -> bool:
        """Whether samples are due: by steps, by epochs, before the first step, and at the end of the run."""
        options = self._options
        if options is None:
            return False
        if run.step == 0:
            return options.at_start
        by_steps = bool(options.every_steps) and run.step % options.every_steps == 0
        by_epochs = bool(options.every_epochs) and epoch_ended and run.epoch % options.every_epochs == 0
        return by_steps or by_epochs or run.step >= run.total

    def look(self, run: Run) -> None:
        """Make one sample of each prompt.

        Raises:
            BaseException: The user pressed cancel, a step was not finite, or the model cannot be taken again.
        """
        if self._options is None:
            self._say(_NONE, _NONE)
            return
        began = time.monotonic()
        run.read_all()  # a step that was not finite ends the run; it is no failed sample
        lora = self._tried(run, self._keeper.lora)
        if lora is None:
            return
        with self._ready.left(partial(self._step_down, run)):
            images = self._painted(run, lora)
        pictures = self._saved(run, images)
        if pictures:
            seconds = round(time.monotonic() - began, 2)
            self._keeper.history.add("sample", step=run.step, epoch=run.epoch, seconds=seconds, pictures=pictures)

    def _step_down(self, run: Run, rung: str) -> None:
        """Say that the model no longer fits into memory as it did before the samples."""
        self._keeper.hint(f"Out of memory after the samples of step {run.step}. Training goes on with {rung}.")

    def _painted(self, run: Run, lora: LoraModel) -> list[Image.Image | None]:
        """Paint every prompt; None stands for each that could not be painted."""
        assert self._options is not None
        memory.free_memory()
        sockets = self._ready.model.patcher, self._clip, self._vae
        painter = self._tried(run, partial(Painter, *sockets, self._prompts, lora, self._options.strength))
        if painter is None:
            return [None] * len(self._prompts)
        latents: list[Any] = []
        for number, prompt in enumerate(self._prompts):
            if self._under_way.is_ending:
                latents.append(None)
                continue
            self._keeper.sink.phase("samples", number, len(self._prompts))
            latents.append(self._tried(run, partial(painter.sample, prompt)))
        self._keeper.sink.phase("samples", len(self._prompts), len(self._prompts))
        return [None if latent is None else self._tried(run, partial(painter.decode, latent)) for latent in latents]

    def _tried(self, run: Run, work: Callable[[], T]) -> T | None:
        """Do work of the host's; None if it throws, which is said once. A cancel goes on."""
        try:
            return work()
        except Exception as error:
            if isinstance(error, Cancelled) or is_host_interrupt(error):
                raise
            log.warning("LoRA Workbench: no sample at step %d", run.step, exc_info=True)
            if is_out_of_memory(error):
                cause, advice = "out of memory", "Lower width and height in Sample Prompts."
            else:
                cause, advice = f"{type(error).__name__}: {error}", "Training goes on. Check Sample Prompts."
        for model in (self._ready.model.model, self._clip.cond_stage_model, self._vae.first_stage_model):
            memory.let_go(model.modules())
        memory.free_memory()  # outside of the error's block: its traceback holds what fills the memory
        self._say(cause, f"A sample at step {run.step} failed ({cause}). {advice}")
        return None

    def _saved(self, run: Run, images: Sequence[Image.Image | None]) -> list[dict[str, Any]]:
        """Save the pictures; return what the run's log says of each."""
        pictures = []
        for number, (prompt, image) in enumerate(zip(self._prompts, images, strict=True), 1):
            if image is None:
                continue
            name = f"step{run.step:08d}-{number}"
            try:
                path = self._keeper.folder.save_sample(name, image, self._carried(prompt, run))
            except UserError as error:
                log.error("LoRA Workbench: %s", error)
                self._say(str(error), str(error))
                continue
            if str(path) not in self._keeper.samples:
                self._keeper.samples.append(str(path))
            pictures.append({
                "file": f"{SAMPLES}/{path.name}", "number": number, "prompt": prompt.text, "seed": prompt.settings.seed,
                "width": image.width, "height": image.height,
            })  # fmt: skip
        return pictures

    def _carried(self, prompt: Prompt, run: Run) -> dict[str, str]:
        """What a sample's file carries."""
        if self._texts is None or self._options is None:
            return {}
        size = size_of(self._vae, prompt.settings)
        lora = {"Lora": self._keeper.folder.name, "Lora step": run.step, "Lora strength": self._options.strength}
        return {**self._texts, "parameters": parameters(prompt, size, lora)}

    def _say(self, cause: str, sentence: str) -> None:
        """Say a sentence, once for each cause."""
        if cause not in self._said:
            self._said.add(cause)
            sentence = without_folders(sentence, DATASETS_KEY)  # the log goes to every page that is open
            self._keeper.hints += (sentence,)
            self._keeper.history.hint(sentence)


def parameters(prompt: Prompt, size: tuple[int, int], more: Mapping[str, Any]) -> str:
    """What a picture was painted with, in the form that A1111 writes into its files.

    Args:
        prompt: The prompt.
        size: Width and height of the picture in pixels.
        more: Further values by name.
    """
    settings = prompt.settings
    values = {
        "Steps": settings.steps, "Sampler": settings.sampler, "Schedule type": settings.scheduler,
        "CFG scale": settings.cfg, "Seed": settings.seed, "Size": f"{size[0]}x{size[1]}", **more,
    }  # fmt: skip
    lines = [prompt.text, *([f"Negative prompt: {settings.negative}"] if settings.negative else [])]
    return "\n".join([*lines, ", ".join(f"{name}: {value}" for name, value in values.items())])
