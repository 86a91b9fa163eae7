"""Bucket Images: the size at which each picture is trained."""

from __future__ import annotations

import logging
from typing import Any

from comfy_api.latest import io, ui

from ..training.data.buckets import BucketConfig, assign_buckets, bucket_report
from ..training.data.dataset import Dataset as DatasetObject
from ..training.data.tensors import image_tensor
from ..training.review.bucket_sheet import bucket_sheet
from ..training.settings import settings_from
from .base import Node
from .schema import Dataset, widgets

log = logging.getLogger(__name__)


class BucketImages(Node):
    """Sorts pictures into sizes of about equal area, so that each is trained close to its own shape."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to ComfyUI."""
        return cls.schema(
            display_name="Bucket Images",
            description="Sorts pictures into buckets: sizes of about equal area and different shapes. Each picture is "
            "scaled to its bucket, then cropped or padded. The sheet shows what is trained.",
            search_aliases=["aspect ratio bucketing", "resolution"],
            inputs=[Dataset.Input("dataset", tooltip="The pictures to sort."), *widgets(BucketConfig)],
            outputs=[
                Dataset.Output(display_name="dataset", tooltip="The dataset with a bucket for each picture."),
                io.Image.Output(display_name="sheet", tooltip="Every bucket with its pictures and their crops."),
            ],
        )

    @classmethod
    def execute(cls, dataset: DatasetObject, **inputs: Any) -> io.NodeOutput:
        """Assign buckets and draw the sheet."""
        bucketed = assign_buckets(dataset, settings_from(BucketConfig, inputs))
        report = bucket_report(bucketed)
        # The sheet shows the rest. A longer text would push it out of view.
        cls.show(report.partition("\n")[0])
        log.info("LoRA Workbench: %s", report)
        sheet = image_tensor(bucket_sheet(bucketed))
        return io.NodeOutput(bucketed, sheet, ui=ui.PreviewImage(sheet, cls=cls))
