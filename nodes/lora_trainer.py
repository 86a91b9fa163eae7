"""LoRA Trainer: the training run."""

from __future__ import annotations

from collections import Counter
from typing import Any

from comfy_api.latest import io

from ..training.data.dataset import Dataset as DatasetObject
from ..training.events import Place
from ..training.host.origin import model_file
from ..training.host.paths import cache_folder, runs_folder
from ..training.host.progress import NodeSink
from ..training.host.sampling import picture_metadata
from ..training.host.server import executing_node, executing_prompt
from ..training.host.shown import workflow_id
from ..training.train import train_lora
from ..training.watch import Watch
from .base import Node
from .schema import Dataset, LoraModel, LossMap, Run, SamplePrompts, training_config, training_inputs, valid_name

# Number of cancelled runs by name since ComfyUI started.
_cancelled: Counter[str | None] = Counter()


class LoRATrainer(Node):
    """Trains a LoRA on the MODEL in the graph."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to ComfyUI."""
        return cls.schema(
            display_name="LoRA Trainer",
            description="Trains a LoRA on the loaded model, without changing the model, and passes it on. Cancelling "
            "keeps what was trained so far.",
            search_aliases=["train lora", "dreambooth", "fine-tune"],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.dynprompt],
            is_output_node=True,  # what is trained is on disk, so nothing needs to follow
            inputs=[
                io.Model.Input("model", tooltip="The model to train on. It is the same afterwards, bit for bit."),
                io.Clip.Input("clip", tooltip="Encodes the captions as it encodes prompts."),
                io.Vae.Input("vae", tooltip="Encodes the pictures. Use the model's own VAE."),
                Dataset.Input("dataset", tooltip="The training pictures, from Bucket Images."),
                *training_inputs(
                    SamplePrompts.Input(
                        "sample_prompts", optional=True,
                        tooltip="From Sample Prompts. Paints them during the run. Empty: no samples.",
                    )
                ),
            ],
            outputs=[
                LoraModel.Output(
                    display_name="lora", tooltip="The LoRA, for Apply LoRA, Save LoRA and ComfyUI's own LoRA nodes."
                ),
                LossMap.Output(display_name="loss_map", tooltip="Loss of each step, for ComfyUI's Plot Loss Graph."),
                Run.Output(display_name="run", tooltip="The run's folder on disk and its result."),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, name: str | None) -> bool | str:
        """Refuse an impossible file name before anything runs."""
        return valid_name(name)

    @classmethod
    def fingerprint_inputs(cls, name: str | None = None, **others: Any) -> str:
        """Change after a cancel, so that the next queue trains again instead of reusing the half-trained LoRA."""
        return str(_cancelled[name])

    @classmethod
    def execute(cls, model: Any, clip: Any, vae: Any, dataset: DatasetObject, **inputs: Any) -> io.NodeOutput:
        """Train."""
        place = Place(workflow_id(cls.hidden.extra_pnginfo), executing_node(), executing_prompt())
        result = train_lora(
            model,
            clip,
            vae,
            dataset,
            training_config(inputs),
            root=runs_folder(),
            cache_root=cache_folder(),
            sink=NodeSink(cls.hidden.unique_id, place),
            model_file=model_file(cls.hidden.dynprompt, cls.hidden.unique_id),
            start_from=inputs.get("start_from"),
            watch=Watch(
                place, inputs.get("sample_prompts"), inputs.get("held_out"),
                picture_metadata(cls.hidden.prompt, cls.hidden.extra_pnginfo),
            ),  # fmt: skip
        )
        if result.summary.outcome != "finished":
            _cancelled[inputs["name"]] += 1
            _cancelled[None] += 1  # for a name from another node
        # Read by programs that queue a prompt and ask ComfyUI for its history.
        told = {"lora_workbench_run": [result.summary.result()]}
        return io.NodeOutput(result.lora, {"loss": list(result.summary.losses)}, result.summary, ui=told)
