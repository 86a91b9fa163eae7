"""The nodes of the pack, listed in the order of a workflow."""

import threading

from comfy_api.latest import ComfyExtension, io

from ..training.host.paths import sweep_folders
from ..training.host.server import add_routes
from ..training.review.routes import all_routes
from ..training.run.routes import run_routes
from .apply_lora import ApplyLoRA
from .auto_caption import AutoCaption
from .bucket_images import BucketImages
from .caption_operation import CaptionOperation
from .compare_checkpoints import CompareCheckpoints
from .concat_datasets import ConcatDatasets
from .dataset_report import DatasetReport
from .edit_captions import EditCaptions
from .estimate_training import EstimateTraining
from .held_out_pictures import HeldOutPictures
from .images_to_dataset import ImagesToDataset
from .live_captions import LiveCaptions
from .load_checkpoint import LoadCheckpoint
from .load_dataset import LoadDataset
from .load_lora import LoadLoRA
from .lora_trainer import LoRATrainer
from .loss_chart import LossChart
from .loss_mask import LossMask
from .loss_options import LossOptions
from .optimizer_options import OptimizerOptions
from .prior_preservation import PriorPreservation
from .regularization_images import RegularizationImages
from .run_browser import RunBrowser
from .sample_prompts import SamplePrompts
from .save_lora import SaveLoRA
from .text_encoder_options import TextEncoderOptions

NODES: list[type[io.ComfyNode]] = [
    LoadDataset,
    ImagesToDataset,
    ConcatDatasets,
    RegularizationImages,
    PriorPreservation,
    AutoCaption,
    CaptionOperation,
    LiveCaptions,
    LossMask,
    DatasetReport,
    EditCaptions,
    BucketImages,
    TextEncoderOptions,
    LossOptions,
    OptimizerOptions,
    SamplePrompts,
    LoadLoRA,
    HeldOutPictures,
    EstimateTraining,
    LoRATrainer,
    LossChart,
    CompareCheckpoints,
    RunBrowser,
    LoadCheckpoint,
    ApplyLoRA,
    SaveLoRA,
]


class LoRAWorkbench(ComfyExtension):
    """The pack's extension, as ComfyUI loads it."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Return every node of the pack."""
        return NODES


async def comfy_entrypoint() -> LoRAWorkbench:
    """Register the nodes, and the pack's routes with ComfyUI's server."""
    add_routes([*all_routes(), *run_routes()])
    # In a thread, because ComfyUI's start must not wait for a cache of many thousand files.
    threading.Thread(target=sweep_folders, name="lora-workbench-sweep", daemon=True).start()
    return LoRAWorkbench()
