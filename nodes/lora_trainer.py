"""LoRATrainer: the training run."""

from __future__ import annotations

from collections import Counter
from typing import Any

from comfy_api.latest import io

from ..training.config import TrainConfig
from ..training.data.dataset import Dataset as DatasetObject
from ..training.host.paths import cache_folder, runs_folder
from ..training.host.progress import NodeSink
from ..training.train import train_lora
from .schema import Dataset, LoraModel, LossMap, Run, config_from, schema, valid_name, widgets

# How many runs of each name were cancelled since ComfyUI started.
_cancelled: Counter[str | None] = Counter()


class LoRATrainer(io.ComfyNode):
    """Trains a LoRA on the MODEL in the graph and hands it on."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """One input per setting of TrainConfig."""
        return schema(
            cls,
            display_name="LoRA Trainer",
            description="Trains a LoRA on the model that is already loaded, without changing it, and hands the LoRA to "
            "the nodes after it. Cancel keeps what was trained so far.",
            search_aliases=["train lora", "dreambooth", "fine-tune"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input("model", tooltip="The model to train on. It comes back exactly as it was."),
                io.Clip.Input("clip", tooltip="Encodes the captions, as it does prompts."),
                io.Vae.Input("vae", tooltip="Encodes the pictures. Must belong to the model."),
                Dataset.Input("dataset", tooltip="From BucketImages."),
                *widgets(TrainConfig),
            ],
            outputs=[
                LoraModel.Output(display_name="lora", tooltip="For ApplyLoRA, SaveLoRA and ComfyUI's own LoRA nodes."),
                LossMap.Output(display_name="loss_map", tooltip="Loss of each step, for ComfyUI's LossGraph node."),
                Run.Output(display_name="run", tooltip="Where the run lies on disk and how it went."),
            ],
        )

    @classmethod
    def validate_inputs(cls, name: str | None) -> bool | str:
        """Refuse a name that cannot be a file's before anything runs."""
        return valid_name(name)

    @classmethod
    def fingerprint_inputs(cls, name: str | None = None, **others: Any) -> str:
        """Change after a cancel, so that queueing again trains again instead of taking the half-trained LoRA."""
        return str(_cancelled[name])

    @classmethod
    def execute(cls, model: Any, clip: Any, vae: Any, dataset: DatasetObject, **settings: Any) -> io.NodeOutput:
        """Train."""
        result = train_lora(
            model,
            clip,
            vae,
            dataset,
            config_from(TrainConfig, settings),
            root=runs_folder(),
            cache_root=cache_folder(),
            sink=NodeSink(cls.hidden.unique_id),
        )
        if result.summary.outcome == "cancelled":
            _cancelled[settings["name"]] += 1
            _cancelled[None] += 1  # for a name that another node gives
        return io.NodeOutput(result.lora, {"loss": list(result.summary.losses)}, result.summary)
