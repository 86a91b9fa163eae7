"""Estimate Training: how long a run is and what it takes, before it."""

from __future__ import annotations

import logging
from typing import Any

from comfy_api.latest import io

from ..training.cache.latents import cache_folders
from ..training.data.dataset import Dataset as DatasetObject
from ..training.estimate import EstimateSettings, estimate
from ..training.host.paths import cache_folder
from ..training.settings import settings_from
from .base import Node
from .schema import Dataset, training_config, training_inputs, valid_name, widgets

log = logging.getLogger(__name__)


class EstimateTraining(Node):
    """Estimates a training run without training."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to ComfyUI."""
        return cls.schema(
            display_name="Estimate Training",
            description="Shows how many steps a training has, what is still to encode, how large the LoRA becomes and "
            "how much memory it takes here and on other cards. Its inputs are those of LoRA Trainer.",
            search_aliases=["vram", "memory", "dry run", "how long"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The model to train on. It is the same afterwards, bit for bit."),
                io.Clip.Input("clip", tooltip="Counts tokens and encodes the longest caption."),
                io.Vae.Input("vae", tooltip="The VAE of the training. No picture is encoded."),
                Dataset.Input("dataset", tooltip="The training pictures, from Bucket Images."),
                # Before the trainer's settings, which get new ones at their end: workflows hold values by position.
                *widgets(EstimateSettings),
                *training_inputs(),
            ],
            outputs=[io.String.Output(display_name="report", tooltip="The estimate in words.")],
        )

    @classmethod
    def validate_inputs(cls, name: str | None) -> bool | str:
        """Refuse what LoRA Trainer would refuse."""
        return valid_name(name)

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> str:
        """Change with the caches, so that what is still to encode is counted again after a training."""
        return " ".join(cache.stamp() for cache in cache_folders(cache_folder()))

    @classmethod
    def execute(cls, model: Any, clip: Any, vae: Any, dataset: DatasetObject, **inputs: Any) -> io.NodeOutput:
        """Estimate, and show the tables in the node."""
        config, settings = training_config(inputs), settings_from(EstimateSettings, inputs)
        with cls.cancellable() as sink:
            found = estimate(
                model, clip, vae, dataset, config, cache_root=cache_folder(), sink=sink, measure=settings.measure,
                start_from=inputs.get("start_from"), held_out=inputs.get("held_out"),
            )  # fmt: skip
        log.info("LoRA Workbench: %s", found.text())
        cls.show(found.summary())
        # Read by web/estimate_training.js.
        return io.NodeOutput(found.text(), ui={"lora_workbench_estimate": [found.panel()]})
