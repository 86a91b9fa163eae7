"""Loss Options: loss, noise and timesteps."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io, ui
from PIL import Image

from ..training.config import TrainConfig
from ..training.data.tensors import image_tensor
from ..training.draws import generator
from ..training.errors import SettingError
from ..training.host.model import HostModel
from ..training.losses import level_weights
from ..training.noise_levels import NoiseLevels
from ..training.objective import refuse_unfit
from ..training.options import LossOptions as Options
from ..training.options import TimestepPicture
from ..training.review.timestep_sheet import message_sheet, shares, timestep_sheet
from ..training.settings import settings_from
from .base import Node
from .schema import LossOptions as Socket
from .schema import widgets

_DRAWS = 200_000
_TOKENS = 4096  # of 1024 × 1024 pixels


class LossOptions(Node):
    """Settings of the loss for LoRA Trainer."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to ComfyUI."""
        return cls.schema(
            display_name="Loss Options",
            description="How LoRA Trainer measures and weighs the loss, draws the noise and chooses noise levels.",
            search_aliases=["min snr", "noise offset", "huber", "timesteps", "pyramid noise", "debiased", "shift"],
            hidden=[],
            is_output_node=True,  # a graph of a model's loader and this node can be queued, for the picture
            inputs=[
                *widgets(Options),
                *widgets(TimestepPicture),
                io.Model.Input("model", optional=True, tooltip="Draws which timesteps of this model are trained."),
            ],
            outputs=[
                Socket.Output(display_name="options", tooltip="For the input loss_options of LoRA Trainer."),
                io.Image.Output(display_name="picture", tooltip="Which timesteps are trained how often."),
            ],
        )

    @classmethod
    def execute(cls, model: Any = None, **inputs: Any) -> io.NodeOutput:
        """Check the settings, pass them on and draw what is trained."""
        options = settings_from(Options, inputs)
        if model is None:
            sheet = message_sheet("Loss Options", "Connect a MODEL to see which timesteps are trained how often.")
            return io.NodeOutput(options, image_tensor(sheet))
        wanted = settings_from(TimestepPicture, inputs).picture_timesteps
        picture = image_tensor(_picture(HostModel(model), options, wanted))
        return io.NodeOutput(options, picture, ui=ui.PreviewImage(picture, cls=cls))


def _picture(model: HostModel, options: Options, wanted: str) -> Image.Image:
    """Draw many times as a run draws, and show what came out."""
    note = ""
    try:
        refuse_unfit(model, settings_from(TrainConfig, {**vars(options), "timesteps": wanted}))
    except SettingError as error:
        note = str(error)
    with torch.inference_mode(False):
        levels = NoiseLevels.of(model, wanted, options)
        sigma, time = levels.draw(_DRAWS, _TOKENS, generator(0, "timestep", 0))
        weights = None if note else level_weights(options, sigma, model.prediction)
    size = " at 1024 × 1024" if options.resolution_shift and model.is_flow else ""
    title = f"Timesteps of {model.family}: {levels.timesteps}{size}"
    weighed = None if weights is None else shares(time.tolist(), weights.tolist())
    return timestep_sheet(title, shares(time.tolist()), weighed, note)
