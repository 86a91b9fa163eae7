"""Every setting of a run, each with its doc, default and bounds in one place.

Node inputs, tooltips and saved metadata are all made from these dataclasses, and a value that does not fit is
refused here, in words, whoever set it.
"""

from __future__ import annotations

from dataclasses import dataclass

from .errors import SettingError
from .settings import check_fields, knob

OPTIMIZERS = ("AdamW", "AdamW8bit", "Lion", "Lion8bit", "Prodigy", "Adafactor", "CAME", "ScheduleFreeAdamW")
SCHEDULERS = (
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "rex",
)
TIMESTEPS = ("auto", "uniform", "logit-normal")
PRECISIONS = ("auto", "bf16", "fp32")
ON_CANCEL = ("keep and go on", "stop the queue")






@dataclass(frozen=True)
class TrainConfig:
    """All of a training run but the model and the pictures."""

    name: str = knob(
        "my_lora",
        "Name of the run and of its folder output/lora_workbench/<name>. A name that is taken gets a number.",
    )
    epochs: int = knob(10, "How often the whole dataset is gone through, repeats included.", min=1, max=100_000)
    learning_rate: float = knob(
        1e-4,
        "Size of a step. 1e-4 suits AdamW on most models, a third to a tenth of it Lion, 1.0 Prodigy.",
        min=0.0,
        max=10.0,
        step=1e-6,
    )
    rank: int = knob(
        16, "Size of the LoRA. 8 to 32 suits a character or a style; larger learns more and overfits sooner.",
        min=1, max=1024,
    )
    batch_size: int = knob(
        1, "Pictures trained together. More is steadier and needs more memory.", min=1, max=256
    )
    steps: int = knob(
        0,
        "0: as many optimizer steps as the epochs make. Any other number counts instead of epochs.",
        min=0,
        max=10_000_000,
        advanced=True,
    )
    gradient_accumulation: int = knob(
        1,
        "Batches gathered before each optimizer step: the effect of a larger batch without its memory.",
        min=1,
        max=1024,
        advanced=True,
    )
    alpha: float = knob(
        0.0,
        "Strength of the LoRA is alpha / rank. 0: the same as rank, so that strength is 1.",
        min=0.0,
        max=4096.0,
        step=0.5,
        advanced=True,
    )
    dropout: float = knob(
        0.0,
        "Share of the LoRA's inner values left out at random in each step, against overfitting. 0.1 is common.",
        min=0.0,
        max=0.95,
        step=0.01,
        advanced=True,
    )
    optimizer: str = knob(
        "AdamW",
        "AdamW is the safe choice. The 8-bit ones save memory, Prodigy finds its own rate (learning rate 1), "
        "ScheduleFreeAdamW needs no scheduler.",
        choices=OPTIMIZERS,
        advanced=True,
    )
    lora_plus: float = knob(
        1.0,
        "LoRA+: how many times faster the half of the LoRA that starts at zero (up) learns than the other. 1: alike. "
        "4 gets closer in the same steps, 16 is what the paper suggests with a lower learning rate.",
        min=1.0,
        max=64.0,
        step=0.5,
        advanced=True,
    )
    scheduler: str = knob(
        "cosine",
        "How the learning rate moves over the run, after warm-up. cosine falls smoothly to zero at the end.",
        choices=SCHEDULERS,
        advanced=True,
    )
    scheduler_cycles: int = knob(
        2, "Cycles of cosine_with_restarts; one cycle is plain cosine.", min=1, max=1000, advanced=True
    )
    warmup_steps: int = knob(
        0,
        "Optimizer steps in which the learning rate rises from zero. The scheduler constant has none.",
        min=0,
        max=1_000_000,
        advanced=True,
    )
    weight_decay: float = knob(
        0.01, "Pull of the weights towards zero.", min=0.0, max=10.0, step=0.001, advanced=True
    )
    max_grad_norm: float = knob(
        1.0, "Longer gradients are cut to this length. 0: never.", min=0.0, max=1000.0, step=0.1, advanced=True
    )
    timesteps: str = knob(
        "auto",
        "Which noise levels are trained most: uniform all alike, logit-normal the middle ones. auto takes logit-normal "
        "for flow models (SD3, Flux and newer) and uniform for the others, as each was made.",
        choices=TIMESTEPS,
        advanced=True,
    )
    precision: str = knob(
        "auto",
        "What the frozen model computes in: auto takes bf16 where the device is made for it, else fp32. "
        "The LoRA itself is always fp32.",
        choices=PRECISIONS,
        advanced=True,
    )
    gradient_checkpointing: bool = knob(
        False,
        "Compute each block twice instead of keeping its activations: far less memory, about a third slower.",
        advanced=True,
    )
    guidance: float = knob(
        1.0,
        "Guidance value told to models that take one as an input (Flux dev and its kin); others ignore it.",
        min=0.0,
        max=100.0,
        step=0.1,
        advanced=True,
    )
    seed: int = knob(
        0,
        "Same inputs and same seed give the same LoRA, bit for bit; on a GPU when ComfyUI runs with --deterministic.",
        min=0,
        max=2**63 - 1,
        advanced=True,
    )
    save_every_epochs: int = knob(
        0, "Keep a checkpoint in the run's folder after every so many epochs. 0: none.", min=0, max=100_000,
        advanced=True,
    )
    save_every_steps: int = knob(
        0, "Keep a checkpoint in the run's folder after every so many steps. 0: none.", min=0, max=10_000_000,
        advanced=True,
    )
    on_cancel: str = knob(
        ON_CANCEL[0],
        "What ComfyUI's cancel button does to a running training: hand on the LoRA as far as it got, so that the "
        "graph shows it, or stop the whole queue. What was trained is saved in the run's folder either way.",
        choices=ON_CANCEL,
        advanced=True,
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.learning_rate == 0:
            raise SettingError("learning rate is 0: nothing would be learned. 1e-4 is a good start.")
        if self.optimizer == "Prodigy" and self.learning_rate < 0.05:
            raise SettingError(
                f"learning rate is {self.learning_rate:g} with Prodigy, which finds its own rate and takes this as "
                "a factor: set it to 1."
            )
        if self.optimizer == "Prodigy" and self.lora_plus != 1:
            raise SettingError(
                f"lora plus is {self.lora_plus:g} with Prodigy, which finds one rate for all: set it to 1, or choose "
                "AdamW."
            )

    @property
    def effective_alpha(self) -> float:
        """Alpha with its 0 read as rank."""
        return self.alpha or float(self.rank)

    @property
    def keeps_on_cancel(self) -> bool:
        """Whether the graph goes on after a cancel."""
        return self.on_cancel == ON_CANCEL[0]




