"""Load Dataset: a folder of pictures and captions."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..training.data.folders import DATASETS_KEY, dataset_folders, missing_folder, resolve_dataset_folder
from ..training.data.scan import LoadSettings, folder_fingerprint, scan_project
from ..training.errors import UserError
from ..training.host.paths import input_folders
from ..training.settings import parse_color, settings_from
from .base import Node
from .schema import Dataset, widgets

log = logging.getLogger(__name__)

_NONE = "(no folder in ComfyUI's input folder yet)"


def _roots() -> list[Path]:
    return input_folders(DATASETS_KEY)


class LoadDataset(Node):
    """Reads a folder: headers and captions only, the pictures stay on disk."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """List the folders that exist now."""
        return cls.schema(
            display_name="Load Dataset",
            description="Loads pictures and captions from a folder in ComfyUI's input folder. A text file next to a "
            "picture is its caption. A sub-folder named 10_my_character is seen 10 times per epoch. Changes on disk "
            "are noticed at the next queue.",
            search_aliases=["training images", "kohya folder", "lora dataset"],
            inputs=widgets(LoadSettings, folder={"options": dataset_folders(_roots()) or [_NONE]}),
            outputs=[
                Dataset.Output(display_name="dataset", tooltip="The pictures with their captions and repeats."),
                Dataset.Output(
                    display_name="regularization",
                    tooltip="The pictures of reg in a kohya project, for Regularization Images. Else empty.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, folder: str | None) -> bool | str:
        """Refuse a missing folder before anything runs. A folder from another node is not known yet (None)."""
        if folder is None:
            return True
        try:
            path = resolve_dataset_folder("" if folder == _NONE else folder, _roots())
        except UserError as error:
            return str(error)
        return True if path.is_dir() else missing_folder(folder)

    @classmethod
    def fingerprint_inputs(cls, folder: str | None = None, caption_extension: str | None = None, **others: Any) -> str:
        """Change when a picture or caption on disk does, and only then."""
        if folder is None:  # from another node, which has not run when the host asks
            return str(time.time_ns())
        try:
            return folder_fingerprint(resolve_dataset_folder(folder, _roots()), caption_extension or "")
        except UserError as error:
            return str(error)

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        """Scan the folder."""
        settings = settings_from(LoadSettings, inputs)
        path, color = resolve_dataset_folder(settings.folder, _roots()), parse_color(settings.background)
        with cls.cancellable() as sink:
            dataset, regularization = scan_project(
                path, trigger=settings.trigger, background=color, sink=sink,
                caption_extension=settings.caption_extension,
            )  # fmt: skip
        cls.show("\n".join([dataset.describe(), *dataset.notes]))
        for sentence in dataset.skipped:
            log.warning("LoRA Workbench: left out: %s", sentence)
        return io.NodeOutput(dataset, regularization)
