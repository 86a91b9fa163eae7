"""Dataset Report: what is wrong with a dataset, and what to do."""

from __future__ import annotations

import logging
from typing import Any

from comfy_api.latest import io, ui

from ..training.data.dataset import Dataset as DatasetObject
from ..training.data.dataset import without
from ..training.data.tensors import image_tensor
from ..training.errors import UserError
from ..training.events import counted
from ..training.host.tokens import token_counter
from ..training.review.doctor import ReportSettings, examine
from ..training.review.looks import look_at_all
from ..training.review.report_sheet import report_sheet
from .base import Node
from .schema import Dataset, widgets

log = logging.getLogger(__name__)


class DatasetReport(Node):
    """Examines a dataset and lists what to fix, the worst first."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to ComfyUI."""
        return cls.schema(
            display_name="Dataset Report",
            description="Finds what spoils a LoRA: near-duplicates, blur, small or heavily cropped pictures, missing, "
            "long or identical captions, useless tags, too few pictures. Says how to fix each.",
            search_aliases=["dataset doctor", "duplicates", "quality"],
            is_output_node=True,  # a graph of Load Dataset and this node can be queued
            inputs=[
                Dataset.Input("dataset", tooltip="The dataset to examine. After Bucket Images, crops are checked too."),
                *widgets(ReportSettings),
                io.Clip.Input("clip", optional=True, tooltip="Counts the tokens of captions exactly."),
            ],
            outputs=[
                Dataset.Output(display_name="dataset", tooltip="The dataset, without the worst pictures if asked."),
                io.Image.Output(display_name="sheet", tooltip="The findings with their pictures."),
                io.String.Output(display_name="report", tooltip="The findings in words."),
            ],
        )

    @classmethod
    def execute(cls, dataset: DatasetObject, leave_out_the_worst: bool, clip: Any = None) -> io.NodeOutput:
        """Examine the dataset."""
        shown = dataset.with_pictures(dataset.without_copies())
        with cls.cancellable() as sink:
            looks = look_at_all(shown, sink)
        examination = examine(shown, looks, token_counter(clip) if clip is not None else None)
        result, report, left_out = dataset, examination.text(), ""
        if leave_out_the_worst and examination.excluded:
            result = without(dataset, examination.excluded)
            if not result.pictures:
                raise UserError("No picture would be left without the worst ones. Turn leave_out_the_worst off.")
            before, after = (len(one.pictures) - len(one.further_views()) for one in (dataset, result))
            left_out = f"Left out: {counted(before - after, 'picture')}."
            report += f"\n{left_out}"
        log.info("LoRA Workbench: %s", report)
        findings = examination.findings
        summary = f"{counted(len(findings), 'finding')}, the worst first." if findings else "No problems found."
        cls.show(f"{summary} {left_out}".strip())
        sheet = image_tensor(report_sheet(shown, examination))
        # Read by web/dataset_report.js.
        panel = [{"severity": f.severity, "what": f.what, "advice": f.advice, "files": list(f.files)} for f in findings]
        shown_in_node = {**ui.PreviewImage(sheet, cls=cls).as_dict(), "lora_workbench_report": panel}
        return io.NodeOutput(result, sheet, report, ui=shown_in_node)
