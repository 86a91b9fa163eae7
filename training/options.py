"""The settings of the option nodes of LoRA Trainer. Without such a node its settings are the defaults here."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .errors import SettingError
from .settings import Settings, knob


@dataclass(frozen=True)
class TextEncoderOptions(Settings):
    """Which text encoders are trained with the model, how fast and how long."""

    clip_l: bool = knob(False, "Train CLIP-L, the text encoder of SD 1.5 and the smaller one of SDXL, SD3 and Flux.")
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
    def trains_text(self) -> bool:
        """Whether any text encoder is trained."""
        return self.clip_l or self.clip_g or self.other


@dataclass(frozen=True)
class LossOptions(Settings):
    """How the loss is measured and weighed, what the noise is, and which noise levels are trained."""


@dataclass(frozen=True)
class OptimizerOptions(Settings):
    """Arguments of the optimizer, and the average of its weights.

    Names are those of the optimizers' libraries. `Source.takes` in `config.py` says which optimizer has which.
    """

    beta1: float = knob(
        0.0, "Memory of the mean gradient. 0 takes the optimizer's own, 0.9 for most. Adafactor has none.",
        min=0.0, max=0.999999, step=0.01,
    )
    beta2: float = knob(
        0.0,
        "Memory of the gradient's square; of the mean gradient in Lion. 0 takes the optimizer's own: 0.99 for Lion and "
        "0.999 for the others. Adafactor has none.",
        min=0.0, max=0.999999, step=0.001,
    )
    beta3: float = knob(
        0.0,
        "CAME: memory of its confidence; 0 takes 0.9999. Prodigy: memory of its estimate of the rate; 0 takes the "
        "square root of beta2.",
        min=0.0, max=0.999999, step=0.0001,
    )
    eps: float = knob(
        0.0, "AdamW, Prodigy, ScheduleFreeAdamW: added to the divisor of each step. 0 takes 1e-8.",
        min=0.0, max=1.0, step=1e-9,
    )
    d_coef: float = knob(
        1.0, "Prodigy: factor on the rate that it finds. 0.5 is careful; 2 is bold.", min=0.001, max=100.0, step=0.1
    )
    d0: float = knob(
        1e-6, "Prodigy: its first guess of the rate. 1e-5 or 1e-4 starts faster.", min=1e-10, max=1.0, step=1e-6
    )
    growth_rate: float = knob(
        0.0, "Prodigy: largest factor by which its rate grows in a step, such as 1.02. 0 sets no limit.",
        min=0.0, max=1000.0, step=0.01,
    )
    bias_correction: bool = knob(
        True, "Prodigy: corrects the means of the first steps, as Adam does. kohya calls it use_bias_correction."
    )
    safeguard_warmup: bool = knob(
        True, "Prodigy: keeps a warm-up from spoiling its estimate of the rate. Turn it off only without warm-up."
    )
    r: float = knob(
        0.0, "ScheduleFreeAdamW: power of the step in its average. 0 counts all steps alike; 1 counts later ones more.",
        min=0.0, max=10.0, step=0.1,
    )
    weight_lr_power: float = knob(
        2.0, "ScheduleFreeAdamW: power of the learning rate in its average, which counts warm-up steps less.",
        min=0.0, max=10.0, step=0.1,
    )
    clip_threshold: float = knob(
        1.0, "Adafactor, CAME: limit of a step's size relative to the learning rate.", min=0.001, max=1000.0, step=0.1
    )
    decay_rate: float = knob(
        -0.8, "Adafactor: memory of the gradient's square after n steps is 1 - n to this power.",
        min=-1.0, max=-0.01, step=0.01,
    )
    scale_parameter: bool = knob(
        False, "Adafactor: multiplies the learning rate by the size of each matrix's weights, which start at zero."
    )
    # Texts, because the front end rounds numbers to ten decimals.
    eps1: str = knob("auto", "Adafactor, CAME: added to the gradient's square. auto is 1e-30.")
    eps2: str = knob(
        "auto", "Adafactor: least size of weights for scale_parameter; auto is 1e-3. CAME: added to the square of its "
        "error; auto is 1e-16.",
    )  # fmt: skip
    ema_decay: float = knob(
        0.0,
        "Saves a running average of the weights instead of the last ones. 0 turns it off; 0.999 averages about the "
        "last 1,000 steps, and fewer at the start. Training itself stays the same.",
        min=0.0, max=0.99999, step=0.001, saved_as="lora_workbench.ema_decay",
    )

    def __post_init__(self) -> None:
        """Refuse texts that are no numbers."""
        super().__post_init__()
        for name in ("eps1", "eps2"):
            text = getattr(self, name)
            if text != "auto" and not _is_positive(text):
                raise SettingError(f"{name} is {text!r}. Write a number above 0 such as 1e-30, or auto.")


def _is_positive(text: str) -> bool:
    """Whether a text is a finite number above 0."""
    try:
        return 0 < float(text) < math.inf
    except ValueError:
        return False
