"""Every setting of a training run, each with its doc, default and bounds in one place.

Node inputs, tooltips, help tables and saved metadata are all made from these dataclasses. A value that does not fit is
refused here, in words, whoever set it. To add a setting, add its field to the part it belongs to and its name to the
end of `TrainerSettings.ORDER`. What few people need goes to an option node (`options.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from .errors import SettingError
from .options import TEXT_ENCODERS, TIMESTEPS, LossOptions, OptimizerOptions, TextEncoderOptions, kohya_loss
from .settings import Settings, knob, saved_settings


@dataclass(frozen=True)
class Source:
    """Where an optimizer comes from.

    Attributes:
        module: What to import.
        name: The class in it.
        package: What to install when the import fails; empty when torch has it.
        settings: Arguments besides the learning rate and weight decay.
        per_tensor: Whether its rule depends on a tensor's shape or size, so that it must see each by itself.
        state: Bytes that it keeps for each trained number.
        betas: Its library's own betas, where they can be set.
        takes: The settings of `OptimizerOptions` that it has.
    """

    module: str
    name: str
    package: str = ""
    settings: tuple[tuple[str, Any], ...] = ()
    per_tensor: bool = False
    state: float = 8
    betas: tuple[float, ...] = ()
    takes: tuple[str, ...] = ()


_BITSANDBYTES, _PYTORCH_OPTIMIZER = "bitsandbytes>=0.50", "pytorch-optimizer>=4.0"
_TWO_BETAS, _LION_BETAS, _CAME_BETAS = (0.9, 0.999), (0.9, 0.99), (0.9, 0.999, 0.9999)
_ADAM, _LION = ("beta1", "beta2", "eps"), ("beta1", "beta2")
SOURCES = {
    "AdamW": Source("torch.optim", "AdamW", betas=_TWO_BETAS, takes=_ADAM),
    "AdamW8bit": Source("bitsandbytes.optim", "AdamW8bit", _BITSANDBYTES, state=2, betas=_TWO_BETAS, takes=_ADAM),
    "Lion": Source("pytorch_optimizer", "Lion", _PYTORCH_OPTIMIZER, state=4, betas=_LION_BETAS, takes=_LION),
    "Lion8bit": Source("bitsandbytes.optim", "Lion8bit", _BITSANDBYTES, state=1, betas=_LION_BETAS, takes=_LION),
    # Without the safeguard its estimate of the rate goes wrong when the schedule starts at zero.
    "Prodigy": Source(
        "pytorch_optimizer", "Prodigy", _PYTORCH_OPTIMIZER, (("safeguard_warmup", True), ("bias_correction", True)),
        state=16, betas=_TWO_BETAS,
        takes=(*_ADAM, "beta3", "d_coef", "d0", "growth_rate", "bias_correction", "safeguard_warmup"),
    ),
    # The memory-saving form: learning rate from outside, no momentum.
    "Adafactor": Source(
        "pytorch_optimizer", "AdaFactor", _PYTORCH_OPTIMIZER,
        (("betas", (None, 0.999)), ("scale_parameter", False), ("relative_step", False)), per_tensor=True, state=0.3,
        takes=("clip_threshold", "decay_rate", "scale_parameter", "eps1", "eps2"),
    ),
    "CAME": Source(
        "pytorch_optimizer", "CAME", _PYTORCH_OPTIMIZER, per_tensor=True, state=4.5, betas=_CAME_BETAS,
        takes=("beta1", "beta2", "beta3", "clip_threshold", "eps1", "eps2"),
    ),
    # The guard keeps one of its two states once more.
    "ScheduleFreeAdamW": Source(
        "pytorch_optimizer", "ScheduleFreeAdamW", _PYTORCH_OPTIMIZER, state=12, betas=_TWO_BETAS,
        takes=(*_ADAM, "r", "weight_lr_power"),
    ),
}  # fmt: skip
OPTIMIZERS = tuple(SOURCES)
SCHEDULERS = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial", "rex")
MEMORY = ("auto", "8 GB", "12 GB", "16 GB", "24 GB", "plenty")
PRECISIONS = ("auto", "bf16", "fp16", "fp32")
ON_CANCEL = ("keep and go on", "stop the queue")
IF_RUN_BEFORE = ("use its LoRA", "train again")


@dataclass(frozen=True)
class NetworkSettings(Settings):
    """What is trained: the LoRA's size and strength."""

    rank: int = knob(
        16, "Size of the LoRA. 8 to 32 suits a character or a style. A larger rank learns more and overfits sooner.",
        min=1, max=1024, saved_as="ss_network_dim",
    )
    alpha: float = knob(
        0.0, "The LoRA is scaled by alpha / rank. 0 uses the rank, so that the scale is 1.",
        min=0.0, max=4096.0, step=0.5, advanced=True, saved_as="ss_network_alpha",
    )
    dropout: float = knob(
        0.0, "Share of the LoRA's inner values dropped at random in each step, against overfitting. 0.1 is common.",
        min=0.0, max=0.95, step=0.01, advanced=True, saved_as="ss_network_dropout",
    )

    @property
    def effective_alpha(self) -> float:
        """Alpha, with 0 read as the rank."""
        return self.alpha or float(self.rank)


@dataclass(frozen=True)
class OptimizerSettings(Settings):
    """How the weights are updated: optimizer, learning rate and schedule."""

    learning_rate: float = knob(
        1e-4,
        "Step size of the optimizer. 1e-4 suits AdamW on most models. Use 1e-5 to 3e-5 for Lion and 1 for Prodigy.",
        min=0.0, max=10.0, step=1e-6, saved_as="ss_learning_rate",
    )
    optimizer: str = knob(
        "AdamW",
        "AdamW is the safe choice. The 8-bit optimizers save memory. Prodigy finds its own rate (set learning_rate to "
        "1). ScheduleFreeAdamW needs no scheduler.",
        choices=OPTIMIZERS, advanced=True,
    )
    lora_plus: float = knob(
        1.0,
        "LoRA+: learning rate of the up matrices as a multiple of the down matrices'. 1 turns it off. 4 learns more in "
        "the same steps; the paper suggests 16 with a lower learning rate.",
        min=1.0, max=64.0, step=0.5, advanced=True,
    )
    scheduler: str = knob(
        "cosine", "How the learning rate changes after warm-up. cosine falls smoothly to zero at the end.",
        choices=SCHEDULERS, advanced=True, saved_as="ss_lr_scheduler",
    )
    scheduler_cycles: int = knob(
        2, "Number of cycles of cosine_with_restarts. 1 is plain cosine.", min=1, max=1000, advanced=True
    )
    warmup_steps: int = knob(
        0, "Optimizer steps in which the learning rate rises from zero. The scheduler constant ignores it.",
        min=0, max=1_000_000, advanced=True, saved_as="ss_lr_warmup_steps",
    )
    weight_decay: float = knob(
        0.01, "Pulls the weights towards zero in each step.", min=0.0, max=10.0, step=0.001, advanced=True
    )
    max_grad_norm: float = knob(
        1.0, "Clips the gradient to this norm. 0 turns clipping off.",
        min=0.0, max=1000.0, step=0.1, advanced=True, saved_as="ss_max_grad_norm",
    )

    def __post_init__(self) -> None:
        """Refuse settings that contradict each other."""
        super().__post_init__()
        if self.learning_rate == 0:
            raise SettingError("learning rate is 0, so nothing would be learned. Set it to 1e-4.")
        if self.optimizer == "Prodigy" and self.learning_rate < 0.05:
            raise SettingError(
                f"learning rate is {self.learning_rate:g}, but Prodigy finds its own rate and uses this as a factor. "
                "Set it to 1."
            )
        if self.optimizer == "Prodigy" and self.lora_plus != 1:
            raise SettingError(
                f"lora plus is {self.lora_plus:g}, but Prodigy uses one rate for all weights. Set lora plus to 1."
            )


@dataclass(frozen=True)
class LossSettings(Settings):
    """What the model is asked and how its answer is weighed."""

    timesteps: str = knob(
        "auto",
        "Which noise levels are trained most: uniform all, logit-normal the middle, mode the middle and the ends. "
        "auto uses logit-normal for flow models (SD3, Flux and newer) and uniform for the others, as each was trained.",
        choices=TIMESTEPS, advanced=True, saved_as="lora_workbench.timesteps",
    )
    guidance: float = knob(
        1.0, "Guidance value given to models that take one as an input (Flux dev and relatives). Others ignore it.",
        min=0.0, max=100.0, step=0.1, advanced=True, saved_as="ss_guidance_scale",
    )


@dataclass(frozen=True)
class MemorySettings(Settings):
    """What the run computes in and keeps in memory."""

    memory: str = knob(
        MEMORY[0],
        "How much memory of the card training may take. auto measures what is free and takes the fastest way that "
        "fits. A size stays within a card of that size. plenty begins with the fastest way.",
        choices=MEMORY, saved_as="lora_workbench.memory",
    )

    precision: str = knob(
        "auto",
        "Number format that training computes in. auto uses bf16 where the hardware supports it, fp16 on older NVIDIA "
        "cards, fp32 on a CPU and ComfyUI's own choice on other devices. The LoRA itself is always fp32.",
        choices=PRECISIONS, advanced=True, saved_as="ss_mixed_precision",
    )
    gradient_checkpointing: bool = knob(
        False,
        "Recomputes each block in the backward pass instead of keeping its activations. Uses far less memory and is "
        "about a third slower.",
        advanced=True, saved_as="ss_gradient_checkpointing",
    )


@dataclass(frozen=True)
class RunSettings(Settings):
    """How long a run takes, what it saves, and its name."""

    name: str = knob(
        "my_lora",
        "Name of the run and of its folder output/lora_workbench/<name>. A name that is taken gets a number.",
        saved_as="ss_output_name",
    )
    epochs: int = knob(
        10, "Number of passes over the dataset, repeats included.", min=1, max=100_000, saved_as="ss_num_epochs"
    )
    batch_size: int = knob(
        1, "Pictures trained together. A larger batch learns more steadily and needs more memory.",
        min=1, max=256, saved_as="ss_batch_size_per_device",
    )
    steps: int = knob(
        0, "Number of optimizer steps. 0 trains as many as the epochs make; any other number replaces epochs.",
        min=0, max=10_000_000, advanced=True, saved_as="ss_max_train_steps",
    )
    gradient_accumulation: int = knob(
        1, "Batches per optimizer step. It has the effect of a larger batch without its memory.",
        min=1, max=1024, advanced=True, saved_as="ss_gradient_accumulation_steps",
    )
    seed: int = knob(
        0,
        "Seed of every random draw. The same inputs and seed give the same LoRA, bit for bit; on a GPU only when "
        "ComfyUI runs with --deterministic.",
        min=0, max=2**63 - 1, advanced=True, saved_as="ss_seed",
    )
    save_every_epochs: int = knob(
        0, "Saves a checkpoint in the run's folder every this many epochs. 0 saves none.",
        min=0, max=100_000, advanced=True,
    )
    save_every_steps: int = knob(
        0, "Saves a checkpoint in the run's folder every this many steps. 0 saves none.",
        min=0, max=10_000_000, advanced=True,
    )
    on_cancel: str = knob(
        ON_CANCEL[0],
        "What ComfyUI's cancel button does during training: pass on the LoRA as it is, or stop the queue. The run's "
        "folder keeps the LoRA either way.",
        choices=ON_CANCEL, advanced=True,
    )
    train_without_captions: bool = knob(
        False,
        "Train pictures without caption and trigger. Everything in them is then learned for every prompt. Off: a "
        "dataset without any caption is refused.",
        advanced=True,
    )
    warn_about_steps: bool = knob(
        True,
        "Warn before training about fewer than 400 or more than 6,000 steps. Turn it off for a model that needs "
        "another number.",
        advanced=True,
    )
    if_run_before: str = knob(
        IF_RUN_BEFORE[0],
        "What happens if a finished run with the same inputs is in output/lora_workbench, also under another name. use "
        "its LoRA takes it at once. train again trains a new one.",
        choices=IF_RUN_BEFORE,
    )
    tensorboard: bool = knob(
        False,
        "Writes a log for TensorBoard too, in the run's folder. Needs the package tensorboard in ComfyUI's Python. "
        "`tensorboard --logdir output/lora_workbench` shows it.",
        advanced=True,
    )

    @property
    def uses_run_before(self) -> bool:
        """Whether a finished run with the same inputs is used."""
        return self.if_run_before == IF_RUN_BEFORE[0]

    @property
    def keeps_on_cancel(self) -> bool:
        """Whether the graph goes on after a cancel."""
        return self.on_cancel == ON_CANCEL[0]


@dataclass(frozen=True)
class TrainerSettings(NetworkSettings, OptimizerSettings, LossSettings, MemorySettings, RunSettings):
    """The settings on the node LoRA Trainer."""

    # Saved workflows hold values by position: a new setting goes to the end.
    ORDER: ClassVar[tuple[str, ...]] = (
        "name", "epochs", "learning_rate", "rank", "batch_size", "steps", "gradient_accumulation", "alpha", "dropout",
        "optimizer", "lora_plus", "scheduler", "scheduler_cycles", "warmup_steps", "weight_decay", "max_grad_norm",
        "timesteps", "precision", "gradient_checkpointing", "guidance", "seed", "save_every_epochs",
        "save_every_steps", "on_cancel", "train_without_captions", "warn_about_steps", "memory",
        "if_run_before", "tensorboard",
    )  # fmt: skip
    ADDED_FROM: ClassVar[str] = "train_without_captions"


@dataclass(frozen=True)
class TrainConfig(TrainerSettings, TextEncoderOptions, LossOptions, OptimizerOptions):
    """All settings of a training run. A function that needs one part of them takes that part."""

    def __post_init__(self) -> None:
        """Refuse settings of different nodes that contradict each other."""
        super().__post_init__()
        for encoder in TEXT_ENCODERS:
            rate = getattr(self, f"{encoder}_rate")
            usual = (0, self.learning_rate, getattr(TextEncoderOptions, f"{encoder}_rate"))
            if self.optimizer == "Prodigy" and getattr(self, encoder) and rate not in usual:
                raise SettingError(
                    f"{encoder.replace('_', ' ')} rate is {rate:g}, but Prodigy uses one rate for all weights. Set it "
                    "to 0."
                )
        self._refuse_foreign_options()

    def rate_of(self, part: str) -> float:
        """The learning rate of a part of the LoRA.

        Args:
            part: The denoiser, or a text encoder by its kind. Prodigy has one rate for all.
        """
        own = 0.0 if self.optimizer == "Prodigy" else getattr(self, f"{part}_rate", 0.0)
        return own or self.learning_rate

    def last_step(self, part: str, total: int) -> int:
        """The last of `total` steps in which a part of the LoRA learns; `part` as in `rate_of`."""
        return math.ceil(total * getattr(self, f"{part}_until", 100.0) / 100)

    def stopped(self, step: int, total: int) -> frozenset[str]:
        """The kinds of text encoders that learn no more after so many steps of `total`."""
        return frozenset(kind for kind in TEXT_ENCODERS if step >= self.last_step(kind, total))

    def _refuse_foreign_options(self) -> None:
        """Refuse arguments that the optimizer does not have."""
        if self.ema_decay and self.optimizer == "ScheduleFreeAdamW":
            raise SettingError(
                f"ema decay is {self.ema_decay:g}, but ScheduleFreeAdamW averages its weights already. Set it to 0."
            )
        for field in fields(OptimizerOptions):
            value, default = getattr(self, field.name), field.default
            takers = [name for name, source in SOURCES.items() if field.name in source.takes]
            if value != default and takers and self.optimizer not in takers:
                label, others = field.name.replace("_", " "), ", ".join(takers)
                raise SettingError(
                    f"{label} is {_in_words(value)}, but {self.optimizer} does not have it. Set it to "
                    f"{_in_words(default)}, or choose an optimizer that has it ({others})."
                )


def _in_words(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def optimizer_arguments(config: TrainConfig, optimizer: str) -> dict[str, Any]:
    """What an optimizer is made with besides the learning rate and weight decay, by its library's names.

    What is set to its default is left to the library.

    Args:
        config: The run's settings.
        optimizer: The optimizer in use, which can be the 8-bit form of the one that is set.
    """
    source = SOURCES[optimizer]
    defaults = {field.name: field.default for field in fields(OptimizerOptions)}
    chosen = {name: getattr(config, name) for name in source.takes if getattr(config, name) != defaults[name]}
    betas = tuple(chosen.pop(f"beta{number}", beta) for number, beta in enumerate(source.betas, 1))
    found = dict(source.settings)
    if betas != source.betas:
        found["betas"] = betas
    return found | {name: float(value) if isinstance(value, str) else value for name, value in chosen.items()}

def kohya_settings(config: TrainConfig, in_force: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run as kohya's trainer saves them, by metadata key.

    Args:
        config: The settings as they were given.
        in_force: Values that took effect instead, by name: for `auto`, or a 0 that stands for another value.
    """
    optimizer = in_force.get("optimizer", config.optimizer)
    source = SOURCES[optimizer]
    precision = in_force.get("precision", config.precision)
    arguments = {"weight_decay": config.weight_decay, **optimizer_arguments(config, optimizer)}
    return {
        **saved_settings(config, in_force),
        **kohya_loss(config),
        # kohya writes none of these values as it is set.
        "ss_network_dropout": config.dropout or None,
        "ss_network_args": {} if config.lora_plus == 1 else {"loraplus_lr_ratio": f"{config.lora_plus:g}"},
        "ss_unet_lr": config.learning_rate,
        "ss_text_encoder_lr": _text_encoder_rates(config),
        "ss_optimizer": f"{source.module}.{source.name}({','.join(f'{k}={v}' for k, v in arguments.items())})",
        **_early_ends(config),
        "ss_mixed_precision": "no" if precision == "fp32" else precision,
    }


def _text_encoder_rates(config: TrainConfig) -> float | list[float] | None:
    """The rates of the trained text encoders: one number if they are equal, None without any."""
    rates = [config.rate_of(kind) for kind, is_trained in config.trained_encoders.items() if is_trained]
    return rates if len(set(rates)) > 1 else next(iter(rates), None)


def _early_ends(config: TrainConfig) -> dict[str, float]:
    """After which percent of the steps text encoders stopped, by metadata key."""
    ends = {kind: getattr(config, f"{kind}_until") for kind in TEXT_ENCODERS if getattr(config, kind)}
    return {f"lora_workbench.{kind}_until": end for kind, end in ends.items() if end < 100}
