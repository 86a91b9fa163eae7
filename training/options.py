"""The settings of the option nodes of LoRA Trainer. Without such a node its settings are the defaults here."""

from __future__ import annotations

from dataclasses import dataclass

from .settings import Settings, knob

TEXT_ENCODERS = ("clip_l", "clip_g", "other")  # the kinds that have settings of their own
LATENTS = ("new each step", "drawn once", "mean")



@dataclass(frozen=True)
class TextEncoderOptions(Settings):
    """Which text encoders are trained with the model, how fast and how long."""

    clip_l: bool = knob(
        False,
        "Train CLIP-L, the text encoder of SD 1.5 and the smaller one of SDXL, SD3 and Flux. Of SD 2 it is CLIP-H.",
    )
    clip_l_rate: float = knob(
        5e-5, "Learning rate of CLIP-L. 0 takes the trainer's. A text encoder wants half of the model's rate or less.",
        min=0.0, max=10.0, step=1e-6,
    )
    clip_l_until: float = knob(
        100.0, "Stop training CLIP-L after this share of the steps, in percent. Then only the model learns on.",
        min=1.0, max=100.0, step=1.0,
    )
    clip_g: bool = knob(False, "Train CLIP-G, the larger text encoder of SDXL and SD3.")
    clip_g_rate: float = knob(
        5e-5, "Learning rate of CLIP-G. 0 takes the trainer's.", min=0.0, max=10.0, step=1e-6
    )
    clip_g_until: float = knob(
        100.0, "Stop training CLIP-G after this share of the steps, in percent.", min=1.0, max=100.0, step=1.0
    )
    other: bool = knob(
        False,
        "Train the other text encoders of the CLIP, such as T5 or a language model. They are large and rarely need it.",
    )
    other_rate: float = knob(
        5e-5, "Learning rate of the other text encoders. 0 takes the trainer's.", min=0.0, max=10.0, step=1e-6
    )
    other_until: float = knob(
        100.0, "Stop training the other text encoders after this share of the steps, in percent.",
        min=1.0, max=100.0, step=1.0,
    )  # fmt: skip

    @property
    def trained_encoders(self) -> dict[str, bool]:
        """Whether each kind of text encoder is trained."""
        return {kind: getattr(self, kind) for kind in TEXT_ENCODERS}


@dataclass(frozen=True)
class LossOptions(Settings):
    """How the loss is measured and weighed, what the noise is, and which noise levels are trained."""

    latents: str = knob(
        LATENTS[0],
        "What is trained where the VAE gives each latent a mean and a spread. new each step draws a latent in each "
        "step. drawn once keeps the first draw, as kohya's trainer does. mean is what ComfyUI's VAE Encode gives.",
        choices=LATENTS, saved_as="lora_workbench.latents",
    )


@dataclass(frozen=True)
class OptimizerOptions(Settings):
    """Arguments of the optimizer, and the average of its weights."""
