"""DatasetReport: the dataset doctor."""

from __future__ import annotations

import logging
from typing import Any

from comfy_api.latest import io, ui

from ..training.data.dataset import Dataset as DatasetObject
from ..training.data.dataset import without
from ..training.data.tensors import image_tensor
from ..training.errors import UserError
from ..training.events import Cancelled
from ..training.host.progress import NodeSink, host_interrupt
from ..training.host.server import node_text
from ..training.host.tokens import token_counter
from ..training.review.doctor import examine
from ..training.review.looks import look_at_all
from ..training.review.report_sheet import report_sheet
from .schema import Dataset, schema

log = logging.getLogger(__name__)


class DatasetReport(io.ComfyNode):
    """Examines a dataset and says what to do, in order."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The dataset, and whether the worst is left out."""
        return schema(
            cls,
            display_name="Dataset Report",
            description="Looks for what spoils a LoRA: near-duplicates, blur, pictures too small or cut too much, "
            "captions that are missing, too long or all the same, useless tags, too few pictures. Says what to do.",
            search_aliases=["dataset doctor", "duplicates", "quality"],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,  # of a graph that only asks what is wrong with a folder
            inputs=[
                Dataset.Input("dataset", tooltip="From LoadDataset, or from BucketImages, and crops are examined too."),
                io.Boolean.Input(
                    "leave_out_the_worst",
                    default=False,
                    tooltip="Leave out unreadable pictures, spare duplicates, blurred ones and those enlarged more "
                    "than twice. The files stay where they are.",
                ),
                io.Clip.Input("clip", optional=True, tooltip="Counts the tokens of captions."),
            ],
            outputs=[
                Dataset.Output(display_name="dataset", tooltip="The same dataset, without the worst if asked."),
                io.Image.Output(display_name="sheet", tooltip="The findings with their pictures."),
                io.String.Output(display_name="report", tooltip="The findings in words."),
            ],
        )

    @classmethod
    def execute(cls, dataset: DatasetObject, leave_out_the_worst: bool, clip: Any = None) -> io.NodeOutput:
        """Examine."""
        sink = NodeSink(cls.hidden.unique_id)
        try:
            shown = dataset.with_pictures(dataset.without_copies())
            looks = look_at_all(shown, sink)
        except Cancelled as error:
            sink.take_cancel()
            raise host_interrupt() from error
        examination = examine(shown, looks, token_counter(clip) if clip is not None else None)
        result, report = dataset, examination.text()
        if leave_out_the_worst and examination.excluded:
            result = without(dataset, examination.excluded)
            if not result.pictures:
                raise UserError("Nothing would be left without the worst pictures: turn leave_out_the_worst off.")
            report += f"\nLeft out: {len(dataset.pictures) - len(result.pictures)}."
        # The panel shows the rest.
        count = len(examination.findings)
        last = report.rpartition("\n")[2] if result is not dataset else ""
        said = "Nothing to complain about."
        if count:
            said = f"{count} finding{'' if count == 1 else 's'}, the worst first."
        node_text(cls.hidden.unique_id, f"{said} {last}".strip())
        log.info("LoRA Workbench: %s", report)
        sheet = image_tensor(report_sheet(shown, examination))
        found = [
            {"severity": f.severity, "what": f.what, "advice": f.advice, "files": list(f.files)}
            for f in examination.findings
        ]
        told = {**ui.PreviewImage(sheet, cls=cls).as_dict(), "lora_workbench_report": found}
        return io.NodeOutput(result, sheet, report, ui=told)
