"""What the user sees: one thin class per node, listed here."""

from comfy_api.latest import ComfyExtension, io

from .apply_lora import ApplyLoRA
from .bucket_images import BucketImages
from .images_to_dataset import ImagesToDataset
from .load_dataset import LoadDataset
from .lora_trainer import LoRATrainer
from .save_lora import SaveLoRA

NODES: list[type[io.ComfyNode]] = [LoadDataset, ImagesToDataset, BucketImages, LoRATrainer, ApplyLoRA, SaveLoRA]


class LoRAWorkbench(ComfyExtension):
    """The pack as ComfyUI loads it."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Return every node of the pack."""
        return NODES


async def comfy_entrypoint() -> LoRAWorkbench:
    """Give ComfyUI the pack."""
    return LoRAWorkbench()
