"""What the user sees: one thin class per node, listed here."""

from comfy_api.latest import ComfyExtension, io

from .apply_lora import ApplyLoRA
from .auto_caption import AutoCaption
from .bucket_images import BucketImages
from .caption_operation import CaptionOperation
from .concat_datasets import ConcatDatasets
from .dataset_report import DatasetReport
from .images_to_dataset import ImagesToDataset
from .live_captions import LiveCaptions
from .load_dataset import LoadDataset
from .lora_trainer import LoRATrainer
from .regularization_images import RegularizationImages
from .save_lora import SaveLoRA

NODES: list[type[io.ComfyNode]] = [
    LoadDataset,
    ImagesToDataset,
    ConcatDatasets,
    RegularizationImages,
    AutoCaption,
    CaptionOperation,
    LiveCaptions,
    DatasetReport,
    BucketImages,
    LoRATrainer,
    ApplyLoRA,
    SaveLoRA,
]


class LoRAWorkbench(ComfyExtension):
    """The pack as ComfyUI loads it."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Return every node of the pack."""
        return NODES


async def comfy_entrypoint() -> LoRAWorkbench:
    """Give ComfyUI the pack."""
    return LoRAWorkbench()
