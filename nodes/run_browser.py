"""Run Browser: a past run, chosen from a list with pictures."""

from __future__ import annotations

import time
from typing import Any

from comfy_api.latest import io

from ..training.errors import UserError
from ..training.host.paths import runs_folder
from ..training.run.checkpoints import summary
from ..training.run.past import RunBrowserSettings, folder_named, names, stamp
from ..training.settings import settings_from
from .base import Node
from .schema import Run, widgets

_NONE = "(no run in output/lora_workbench yet)"


class RunBrowser(Node):
    """Gives a run that is on disk, also after a restart."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """List the runs that exist now."""
        return cls.schema(
            display_name="Run Browser",
            description="Picks a past run of LoRA Trainer from a list with its newest sample, date, steps and loss. "
            "Connect it to Load LoRA Checkpoint.",
            search_aliases=["past runs", "history", "checkpoints"],
            inputs=widgets(RunBrowserSettings, run={"options": names(runs_folder()) or [_NONE]}),
            outputs=[Run.Output(display_name="run", tooltip="The run, for nodes that read its folder.")],
        )

    @classmethod
    def validate_inputs(cls, run: str | None) -> bool | str:
        """Refuse a run that is gone before anything runs. A name from another node is not known yet (None)."""
        if run is None:
            return True
        try:
            folder_named(runs_folder(), run)
        except UserError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, run: str | None = None) -> str:
        """Change with the run and its checkpoints."""
        if run is None:  # from another node, which has not run when the host asks
            return str(time.time_ns())
        try:
            return stamp(folder_named(runs_folder(), run))
        except UserError as error:
            return str(error)

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        """Read the run's summary."""
        found = summary(folder_named(runs_folder(), settings_from(RunBrowserSettings, inputs).run))
        cls.show(str(found))
        return io.NodeOutput(found)
