"""Load LoRA File: a LoRA from models/loras as a LORA_MODEL."""

from __future__ import annotations

import time
from typing import Any

from comfy_api.latest import io

from ..training.errors import UserError
from ..training.files.load import LoadLoraSettings, described, load_lora, refuse_other_files
from ..training.host.paths import lora_file, lora_files
from ..training.settings import settings_from
from .base import Node
from .schema import LoraModel, widgets

_NONE = "(no file in models/loras yet)"


class LoadLoRA(Node):
    """Reads a LoRA file, to train on or to apply."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """List the files that exist now."""
        return cls.schema(
            display_name="Load LoRA File",
            description="Loads a LoRA from models/loras. Connect it to start_from of LoRA Trainer to train on from it.",
            search_aliases=["continue training", "resume", "network_weights", "start from lora"],
            inputs=widgets(LoadLoraSettings, file={"options": lora_files() or [_NONE]}),
            outputs=[LoraModel.Output(display_name="lora", tooltip="The LoRA, for LoRA Trainer and Apply LoRA.")],
        )

    @classmethod
    def validate_inputs(cls, file: str | None) -> bool | str:
        """Refuse a missing file or a pickle before anything runs. A name from another node is not known yet (None)."""
        if file is None:
            return True
        try:
            refuse_other_files(file)
            lora_file(file)
        except UserError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, file: str | None = None) -> str:
        """Change with the file."""
        if file is None:  # from another node, which has not run when the host asks
            return str(time.time_ns())
        try:
            status = lora_file(file).stat()
        except (UserError, OSError) as error:
            return str(error)
        return f"{status.st_mtime_ns} {status.st_size}"

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        """Read the file."""
        name = settings_from(LoadLoraSettings, inputs).file
        refuse_other_files(name)
        lora = load_lora(lora_file(name), name)
        cls.show(described(lora))
        return io.NodeOutput(lora)
