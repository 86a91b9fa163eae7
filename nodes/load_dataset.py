"""LoadDataset: a folder of pictures and captions."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..training.data.folders import DATASETS_KEY, dataset_folders, resolve_dataset_folder
from ..training.data.scan import folder_fingerprint, scan_folder
from ..training.errors import UserError
from ..training.events import Cancelled
from ..training.host.paths import input_folders
from ..training.host.progress import NodeSink, host_interrupt
from ..training.host.server import node_text
from ..training.settings import parse_color
from .schema import Dataset, advanced, schema

log = logging.getLogger(__name__)

_NONE = "(no folder in ComfyUI's input folder yet)"


def _roots() -> list[Path]:
    return input_folders(DATASETS_KEY)


class LoadDataset(io.ComfyNode):
    """Reads a folder; only headers and captions, the pictures stay on disk."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """List the folders there are now."""
        return schema(
            cls,
            display_name="Load Dataset",
            description="Pictures and captions from a folder below ComfyUI's input folder. Sub-folders named like "
            "10_my_character give repeats (10) and class word; .txt or .caption files beside the pictures give "
            "captions. A change on disk is noticed at the next queue.",
            search_aliases=["training images", "kohya folder", "lora dataset"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=dataset_folders(_roots()) or [_NONE],
                    tooltip="A folder below ComfyUI's input folder, or one of the folders that lora_datasets names in "
                    "extra_model_paths.yaml.",
                ),
                io.String.Input(
                    "trigger",
                    default="",
                    tooltip="The word that will call what is learned. Put first into each caption that lacks it.",
                ),
                advanced(
                    io.String.Input(
                        "background",
                        default="#ffffff",
                        tooltip="What shows through transparent pixels and fills padding: #rrggbb, white, grey or "
                        "black.",
                    )
                ),
            ],
            outputs=[Dataset.Output(display_name="dataset", tooltip="The pictures with their captions and repeats.")],
        )

    @classmethod
    def validate_inputs(cls, folder: str | None) -> bool | str:
        """Refuse a folder that is not there before anything runs; one that another node names is not known yet."""
        if folder is None:
            return True
        try:
            path = resolve_dataset_folder("" if folder == _NONE else folder, _roots())
        except UserError as error:
            return str(error)
        return True if path.is_dir() else f"The folder {folder!r} is not there any more. Choose another one."

    @classmethod
    def fingerprint_inputs(cls, folder: str | None = None, **others: Any) -> str:
        """Change when a picture or caption on disk does, and only then."""
        if folder is None:  # named by another node; the host asks before that node has run
            return str(time.time_ns())
        try:
            return folder_fingerprint(resolve_dataset_folder(folder, _roots()))
        except UserError as error:
            return str(error)

    @classmethod
    def execute(cls, folder: str, trigger: str = "", background: str = "#ffffff") -> io.NodeOutput:
        """Scan the folder."""
        path = resolve_dataset_folder(folder, _roots())
        sink = NodeSink(cls.hidden.unique_id)
        try:
            dataset = scan_folder(path, trigger=trigger.strip(), background=parse_color(background), sink=sink)
        except Cancelled as error:
            sink.take_cancel()
            raise host_interrupt() from error
        node_text(cls.hidden.unique_id, dataset.describe())
        for sentence in dataset.skipped:
            log.warning("LoRA Workbench: left out: %s", sentence)
        return io.NodeOutput(dataset)
