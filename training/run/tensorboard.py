"""A log for TensorBoard, written from the lines of a run's history; its package is imported only when asked for."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..events import Line

log = logging.getLogger(__name__)

FOLDER = "tensorboard"
_ENDS = "LoRA Workbench: the TensorBoard log ends here"


class TensorBoardLog:
    """Scalars and samples of a run in `<run>/tensorboard/`. What goes wrong costs the log, not the run.

    Args:
        folder: The run's folder.
        hint: Receives a sentence if nothing can be written.
    """

    def __init__(self, folder: Path, hint: Callable[[str], None]) -> None:
        self._folder, self._hint = folder, hint
        self._writer: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder / FOLDER))  # type: ignore[no-untyped-call]
        except ImportError:
            hint(
                "No TensorBoard log is written, because its package is not installed. In ComfyUI's Python run: "
                "pip install tensorboard"
            )
        except Exception as error:  # of the package or the disk
            log.exception(_ENDS)
            self._give_up(error)

    def take(self, line: Line) -> None:
        """Write what a line says."""
        if self._writer is None:
            return
        try:
            for name, value in scalars(line).items():
                self._writer.add_scalar(name, value, line["step"])
            if line["kind"] == "sample":
                for picture in line["pictures"]:
                    self._add_picture(f"sample/{picture['number']}", picture["file"], line["step"])
            if line["kind"] in ("epoch", "held_out", "sample"):
                self._writer.flush()
        except Exception as error:
            log.exception(_ENDS)
            self._give_up(error)

    def close(self) -> None:
        """Write what is left and let go of the files."""
        writer, self._writer = self._writer, None
        try:
            if writer is not None:
                writer.close()
        except Exception as error:
            log.exception(_ENDS)
            self._give_up(error)

    def _add_picture(self, name: str, file: str, step: int) -> None:
        try:
            with Image.open(self._folder / file) as image:
                pixels = np.asarray(image.convert("RGB"))
        except OSError:  # it could not be saved, or was removed
            return
        self._writer.add_image(name, pixels, step, dataformats="HWC")

    def _give_up(self, error: Exception) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            with suppress(Exception):  # what kept it from writing keeps it from closing well
                writer.close()
        self._hint(f"The TensorBoard log could not be written ({error}). Look into ComfyUI's log.")


def scalars(line: Line) -> dict[str, float]:
    """The numbers of a line by the names that TensorBoard groups them by."""
    if line["kind"] == "step":
        concepts = {f"concept/{name}": loss for name, loss in line["concepts"].items()}
        return {"loss/step": line["loss"], "learning_rate": line["rate"], **concepts}
    if line["kind"] == "epoch":
        return {"loss/epoch": line["loss"]}
    if line["kind"] == "held_out":
        concepts = {f"held_out_concept/{name}": found["loss"] for name, found in line["concepts"].items()}
        return {"held_out/loss": line["loss"], "held_out/base": line["base"], **concepts}
    return {}
