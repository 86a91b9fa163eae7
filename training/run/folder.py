"""The run's folder: what a run makes is on disk, so that nothing hangs on the graph's memory."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..disk import disk_trouble, safe_name, write_whole
from ..errors import UserError
from ..files.export import write_lora
from ..lora import LoraModel, RunSummary
from ..settings import ordered_fields

RUN, LOG, SAMPLES, REPORT = "run.json", "log.jsonl", "samples", "report.html"
CONFIG, SUMMARY, LAYERS = "config.json", "summary.json", "layers.json"


class RunFolder:
    """`output/lora_workbench/<name>/`: what the run is and was set to, its log, losses, samples and checkpoints.

    Attributes:
        name: The folder's name; a number is added when the wished one is taken.
        path: Where it lies.
    """

    def __init__(self, root: Path, name: str) -> None:
        wished = safe_name(name)
        number = 1
        while True:
            self.name = wished if number == 1 else f"{wished}-{number}"
            self.path = root / self.name
            try:
                self.path.mkdir(parents=True)
                return
            except FileExistsError:
                number += 1
            except OSError as error:
                raise UserError(disk_trouble(error, root)) from error

    def write_run(self, facts: dict[str, Any]) -> None:
        """Write what identifies the run, where it took place and, at its end, how it went."""
        self._write(RUN, json.dumps(facts, indent=1, ensure_ascii=False))

    def append_log(self, text: str) -> None:
        """Append lines to the run's log.

        Raises:
            UserError: The disk is full, or the folder is gone or cannot be written.
        """
        try:
            with (self.path / LOG).open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise UserError(disk_trouble(error, self.path)) from error

    def write_config(self, config: Any) -> None:
        """Write the settings of the run."""
        settings = {field.name: getattr(config, field.name) for field in ordered_fields(config)}
        self._write(CONFIG, json.dumps(settings, indent=1))

    def write_losses(self, losses: list[float], rates: list[float]) -> None:
        """Write step, loss and learning rate, one line a step."""
        lines = ["step,loss,learning_rate"]
        lines += [
            f"{n},{loss:.9g},{rate:.9g}" for n, (loss, rate) in enumerate(zip(losses, rates, strict=True), 1)
        ]
        self._write("losses.csv", "\n".join(lines) + "\n")

    def write_summary(self, summary: RunSummary) -> None:
        """Write how the run went."""
        self._write(SUMMARY, json.dumps(dataclasses.asdict(summary), indent=1))

    def write_layers(self, text: str) -> None:
        """Write the names of the LoRA's layers, so that its files can be written in other layouts later."""
        self._write(LAYERS, text)

    def write_report(self, page: str) -> None:
        """Write the run's report."""
        self._write(REPORT, page)

    def save(self, lora: LoraModel, suffix: str = "") -> Path:
        """Write the LoRA as it is now, fp32, under the run's name and a suffix such as `-000010`."""
        return write_lora(
            self.path / f"{self.name}{suffix}.safetensors", lora, precision="fp32", layout="kohya", overwrite=True
        )

    def save_sample(self, name: str, image: Image.Image, texts: Mapping[str, str]) -> Path:
        """Write a picture that the run made of itself.

        Args:
            name: Its name below the folder of samples, without `.png`.
            image: The picture.
            texts: What the file carries, by key.

        Raises:
            UserError: The disk is full, or the folder is gone or cannot be written.
        """
        info = PngInfo()
        for key, text in texts.items():
            info.add_text(key, text)
        path = self.path / SAMPLES / f"{name}.png"
        try:
            write_whole(path, lambda part: image.save(part, format="PNG", pnginfo=info, compress_level=4))
        except OSError as error:
            raise UserError(disk_trouble(error, path.parent)) from error
        return path

    def discard(self) -> None:
        """Remove the folder again: nothing was trained."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _write(self, name: str, text: str) -> None:
        try:
            write_whole(self.path / name, text)
        except OSError as error:
            raise UserError(disk_trouble(error, self.path)) from error
