"""The settings of the option nodes of LoRA Trainer. Without such a node its settings are the defaults here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from .errors import SettingError
from .settings import Settings, knob

TEXT_ENCODERS = ("clip_l", "clip_g", "other")  # the kinds that have settings of their own
LATENTS = ("new each step", "drawn once", "mean")
TIMESTEPS = ("auto", "uniform", "logit-normal", "mode")
LOSSES = ("L2", "L1", "Huber", "smooth L1")
HUBER_SCHEDULES = ("exponential", "constant", "snr")
WEIGHTINGS = ("none", "min-SNR", "soft min-SNR", "debiased", "scale v like noise", "P2")




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

    weighting: str = knob(
        "none",
        "Weighs the loss by noise level, for models that predict noise or v. min-SNR stops easy levels from "
        "outweighing the others (common). soft min-SNR does so smoothly. debiased and P2 favour high noise.",
        choices=WEIGHTINGS, saved_as="lora_workbench.weighting",
    )
    gamma: float = knob(
        5.0, "Signal-to-noise ratio from which min-SNR and soft min-SNR lower the weight. 5 is usual.",
        min=0.01, max=1000.0, step=0.1,
    )
    p2_gamma: float = knob(
        1.0, "Strength of P2. 0.5 to 1 is usual; 0 turns it off.",
        min=0.0, max=10.0, step=0.1,
    )
    loss: str = knob(
        "L2",
        "How an error counts. L2 is what models are trained with. L1, Huber and smooth L1 give outliers, such as "
        "damaged pictures, less influence.",
        choices=LOSSES,
    )
    huber_c: float = knob(
        0.1, "Size of error above which Huber and smooth L1 grow linearly, at the noisiest level. 0.1 is usual.",
        min=0.0001, max=10.0, step=0.01,
    )
    huber_schedule: str = knob(
        "exponential",
        "How huber_c changes with noise. constant keeps it. exponential and snr raise it to 1 for little noise. snr "
        "does not fit flow models.",
        choices=HUBER_SCHEDULES,
    )
    noise_offset: float = knob(
        0.0, "Shifts the noise of each channel, so that dark and bright pictures are learned. 0.03 to 0.1 is usual.",
        min=0.0, max=10.0, step=0.01,
    )
    noise_offset_adaptive: float = knob(
        0.0, "Adds this times the size of the picture's mean latent to noise_offset. It can be below 0.",
        min=-10.0, max=10.0, step=0.01,
    )
    noise_offset_random: bool = knob(
        False, "Draws the strength of the noise offset for each picture, from 0 to its full value."
    )
    multires_iterations: int = knob(
        0, "Adds so many coarser layers of noise (pyramid noise). 6 to 10 is usual; 0 turns it off.", min=0, max=16
    )
    multires_discount: float = knob(
        0.3, "Strength of each layer of pyramid noise compared with the finer one. 0.1 to 0.3 suits a LoRA.",
        min=0.0, max=1.0, step=0.05,
    )
    ip_noise_gamma: float = knob(
        0.0, "Input perturbation: extra noise that the model sees and is not asked for. 0.1 is usual; 0 turns it off.",
        min=0.0, max=1.0, step=0.01,
    )
    ip_noise_random: bool = knob(
        False, "Draws the strength of input perturbation for each picture, from 0 to ip_noise_gamma."
    )
    timestep_mean: float = knob(
        0.0, "Centre of logit-normal timesteps. Above 0 trains high noise more, below 0 low noise.",
        min=-5.0, max=5.0, step=0.1,
    )
    timestep_spread: float = knob(
        1.0, "Spread of logit-normal timesteps. Smaller values train the middle more.", min=0.01, max=10.0, step=0.1
    )
    mode_scale: float = knob(
        1.29, "Strength of mode timesteps. Above 0 trains the middle more, below 0 the two ends.",
        min=-1.0, max=1.75, step=0.01,
    )
    shift: float = knob(
        0.0,
        "Timestep shift of flow models: above 1 trains high noise more. 0 uses that of the model or of its "
        "ModelSampling node.",
        min=0.0, max=100.0, step=0.1,
    )
    resolution_shift: bool = knob(
        False, "Shifts the timesteps of flow models by the size of each picture, as Flux was trained."
    )
    min_timestep: int = knob(
        0, "Trains no timestep below this, of 1000. The chosen distribution spans the rest.", min=0, max=999
    )
    max_timestep: int = knob(
        1000, "Trains no timestep above this, of 1000. The chosen distribution spans the rest.", min=1, max=1000
    )

    latents: str = knob(
        LATENTS[0],
        "What is trained where the VAE gives each latent a mean and a spread. new each step draws a latent in each "
        "step. drawn once keeps the first draw, as kohya's trainer does. mean is what ComfyUI's VAE Encode gives.",
        choices=LATENTS, saved_as="lora_workbench.latents",
    )

    def __post_init__(self) -> None:
        """Refuse settings that contradict each other."""
        super().__post_init__()
        if self.noise_offset_adaptive and not self.noise_offset:
            raise SettingError(
                f"noise offset adaptive is {self.noise_offset_adaptive:g}, but noise offset is 0, so it has no effect. "
                "Set noise offset to 0.05."
            )
        if self.noise_offset and self.multires_iterations:
            raise SettingError(
                f"noise offset is {self.noise_offset:g} and multires iterations is {self.multires_iterations}, but "
                "only one can be used. Set one of them to 0."
            )
        if self.shift and self.resolution_shift:
            raise SettingError(
                f"shift is {self.shift:g} and resolution shift is on, but only one can be used. Set shift to 0."
            )
        if self.min_timestep >= self.max_timestep:
            raise SettingError(
                f"min timestep is {self.min_timestep} and max timestep is {self.max_timestep}, so no timestep is left. "
                "Lower min timestep."
            )


@dataclass(frozen=True)
class TimestepPicture(Settings):
    """What the picture of Loss Options shows. It changes no training."""

    picture_timesteps: str = knob(
        "auto",
        "For which way of drawing timesteps the picture is made. Set it like timesteps in LoRA Trainer; it changes the "
        "picture only.",
        choices=TIMESTEPS,
    )


def kohya_loss(options: LossOptions) -> dict[str, Any]:
    """The settings of loss, noise and timesteps by metadata key, kohya's where there is one. What is off is None."""
    o = options
    huber, offset, multires = o.loss in ("Huber", "smooth L1"), o.noise_offset or None, o.multires_iterations or None
    return {
        "ss_min_snr_gamma": o.gamma if o.weighting == "min-SNR" else None,
        "ss_debiased_estimation": o.weighting == "debiased",
        "ss_scale_v_pred_loss_like_noise_pred": o.weighting == "scale v like noise",
        "ss_loss_type": o.loss.lower().replace(" ", "_"),
        "ss_huber_schedule": o.huber_schedule if huber else None,
        "ss_huber_c": o.huber_c if huber else None,
        "ss_huber_scale": 1.0 if huber else None,
        "ss_noise_offset": offset,
        "ss_adaptive_noise_scale": (o.noise_offset_adaptive or None) if offset else None,
        "ss_noise_offset_random_strength": bool(offset and o.noise_offset_random),
        "ss_multires_noise_iterations": multires,
        "ss_multires_noise_discount": o.multires_discount if multires else None,
        "ss_ip_noise_gamma": o.ip_noise_gamma or None,
        "ss_ip_noise_gamma_random_strength": bool(o.ip_noise_gamma and o.ip_noise_random),
        "ss_min_timestep": o.min_timestep or None,
        "ss_max_timestep": o.max_timestep if o.max_timestep < 1000 else None,
        **{f"lora_workbench.{name}": value for name, value in _own(o).items() if value != getattr(LossOptions, name)},
    }


def _own(options: LossOptions) -> dict[str, Any]:
    """What has an effect and no key in kohya's trainer, or one whose form depends on the model."""
    o = options
    own = {"p2_gamma": o.p2_gamma} if o.weighting == "P2" else {}
    own |= {"gamma": o.gamma} if o.weighting == "soft min-SNR" else {}
    always = ("timestep_mean", "timestep_spread", "mode_scale", "shift", "resolution_shift")
    return own | {name: getattr(o, name) for name in always}


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
