"""BucketImages: which size each picture is trained at, and what of it."""

from __future__ import annotations

import logging
from typing import Any

from comfy_api.latest import io, ui

from ..training.data.buckets import BucketConfig, assign_buckets, bucket_report
from ..training.data.dataset import Dataset as DatasetObject
from ..training.data.tensors import image_tensor
from ..training.host.server import node_text
from ..training.review.bucket_sheet import bucket_sheet
from .schema import Dataset, config_from, schema, widgets

log = logging.getLogger(__name__)


class BucketImages(io.ComfyNode):
    """Sorts pictures into sizes of about one area, so that each is trained close to its own shape."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """One input per setting of BucketConfig."""
        return schema(
            cls,
            display_name="Bucket Images",
            description="Sorts the pictures into buckets: sizes of about the same area and different shapes. Each "
            "picture is scaled to its bucket and cropped (or padded). The sheet shows what of each is trained.",
            search_aliases=["aspect ratio bucketing", "resolution"],
            hidden=[io.Hidden.unique_id],
            inputs=[Dataset.Input("dataset"), *widgets(BucketConfig)],
            outputs=[
                Dataset.Output(display_name="dataset", tooltip="The dataset, each picture with its bucket."),
                io.Image.Output(display_name="sheet", tooltip="Every bucket with its pictures and their crops."),
            ],
        )

    @classmethod
    def execute(cls, dataset: DatasetObject, **settings: Any) -> io.NodeOutput:
        """Assign buckets and draw the sheet."""
        bucketed = assign_buckets(dataset, config_from(BucketConfig, settings))
        report = bucket_report(bucketed)
        # The sheet shows the rest; a tall text would push it out of sight.
        node_text(cls.hidden.unique_id, report.partition("\n")[0])
        log.info("LoRA Workbench: %s", report)
        sheet = image_tensor(bucket_sheet(bucketed))
        return io.NodeOutput(bucketed, sheet, ui=ui.PreviewImage(sheet, cls=cls))
