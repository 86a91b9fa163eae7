"""Optimizers, from well-kept libraries imported only when a run asks for them, and learning-rate schedules."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from .adapters.flat import DENOISER
from .adapters.network import Network
from .config import SOURCES, OptimizerSettings, TrainConfig, optimizer_arguments
from .errors import UserError

_BLOCK = 256  # numbers that share a scale in the 8-bit state of bitsandbytes


def optimizer_class(name: str) -> type[Optimizer]:
    """Import an optimizer's class. Called before any work is done.

    Raises:
        UserError: Its package is missing or too old; names the command that installs it.
    """
    source = SOURCES[name]
    try:
        return getattr(importlib.import_module(source.module), source.name)  # type: ignore[no-any-return]
    except (ImportError, AttributeError, OSError) as error:
        raise UserError(
            f"The optimizer {name} needs a package that is not installed or too old ({error}). In ComfyUI's Python "
            f'run: pip install "{source.package}" and restart ComfyUI, or choose AdamW.'
        ) from error


def make_optimizer(config: TrainConfig, network: Network) -> Optimizer:
    """Make the optimizer a config asks for.

    Each text encoder has groups of its own. With LoRA+ (Hayou et al. 2024, arXiv:2402.12354) `up` has a rate of its
    own, in a second group. The first group's is always the learning rate of the config.
    """
    settings = optimizer_arguments(config, config.optimizer)
    if is_schedule_free(config):
        settings["warmup_steps"] = config.warmup_steps  # it warms up by itself
    make: Any = optimizer_class(config.optimizer)
    trained = network.flat.trained(is_per_tensor=SOURCES[config.optimizer].per_tensor)
    groups = [
        {"params": tensors, "lr": config.rate_of(part) * (config.lora_plus if kind == "up" else 1), "part": part}
        for (part, kind), tensors in trained.items()
    ]
    if config.optimizer == "AdamW":
        settings["fused"] = network.flat.master.device.type in ("cuda", "cpu")
    optimizer: Optimizer = make(groups, lr=config.learning_rate, weight_decay=config.weight_decay, **settings)
    return optimizer


@torch.no_grad()
def take_over_state(old: Optimizer, new: Any) -> None:
    """Give an 8-bit optimizer of bitsandbytes what the 32-bit one of the same rule has come to, in 8 bits.

    Args:
        old: Its state can be empty, before its first step.
        new: Of the same weights in the same groups, before its first step.
    """
    from bitsandbytes.functional import quantize_blockwise

    for number, (group, before) in enumerate(zip(new.param_groups, old.param_groups, strict=True)):
        for place, (weight, same) in enumerate(zip(group["params"], before["params"], strict=True)):
            state = old.state.get(same)
            if not state:
                continue
            new.init_state(group, weight, number, place)
            mine = new.state[weight]
            mine["step"] = int(state.get("step", before.get("step", 0)))
            for which, name in enumerate(("exp_avg", "exp_avg_sq"), 1):
                if name not in state:
                    continue
                if mine[f"state{which}"].dtype == torch.uint8:
                    quantize_blockwise(
                        state[name], code=mine[f"qmap{which}"], absmax=mine[f"absmax{which}"],
                        out=mine[f"state{which}"], blocksize=_BLOCK,
                    )  # fmt: skip
                else:
                    mine[f"state{which}"].copy_(state[name])


def is_schedule_free(config: OptimizerSettings) -> bool:
    """Whether the optimizer averages its weights instead of following a schedule (Defazio et al. 2024)."""
    return config.optimizer == "ScheduleFreeAdamW"


def scheduler_in_force(config: OptimizerSettings) -> str:
    """The schedule in effect: schedule-free optimizers keep a constant rate."""
    return "constant" if is_schedule_free(config) else config.scheduler


def warmup_in_force(config: OptimizerSettings, steps: int) -> int:
    """The warm-up steps in effect: `constant` has none, and at least one step follows them."""
    if scheduler_in_force(config) == "constant" and not is_schedule_free(config):
        return 0
    return min(config.warmup_steps, max(steps - 1, 0))


def decay(name: str, progress: float, cycles: int = 2) -> float:
    """The factor on the learning rate after warm-up.

    The cosines are Loshchilov & Hutter 2016 (arXiv:1608.03983), REX is Chen et al. 2021 (arXiv:2107.04197): slow
    first, fast at the end. kohya's and transformers' schedules of these names give the same numbers; `polynomial` is
    theirs with power 2, since power 1 is `linear`.

    Args:
        name: One of `SCHEDULERS`.
        progress: Share of the run after warm-up that is done, 0 to 1.
        cycles: Cycles of `cosine_with_restarts`.
    """
    left = max(0.0, 1 - progress)
    if name == "linear":
        return left
    if name == "polynomial":
        return left**2
    if name == "rex":
        return left / (0.5 + 0.5 * left)
    if name in ("cosine", "cosine_with_restarts"):
        within = (progress * cycles) % 1 if name == "cosine_with_restarts" and left else progress
        return (1 + math.cos(math.pi * within)) / 2
    return 1.0


def make_scheduler(config: TrainConfig, optimizer: Optimizer, steps: int) -> LambdaLR:
    """Make the schedule over `steps` optimizer steps, warm-up included; stepped once after each optimizer step.

    A text encoder that stops early follows the same schedule until then.
    """
    warmup = warmup_in_force(config, steps)

    def factor(step: int) -> float:
        if is_schedule_free(config):
            return 1.0
        if step < warmup:
            return step / warmup
        return decay(config.scheduler, (step - warmup) / max(1, steps - warmup), config.scheduler_cycles)

    def until(last: int) -> Callable[[int], float]:
        return lambda step: factor(step) if step < last else 0.0

    parts = [group.get("part", DENOISER) for group in optimizer.param_groups]
    return LambdaLR(optimizer, [until(config.last_step(part, steps)) if part != DENOISER else factor for part in parts])


@contextmanager
def weights_to_keep(optimizer: Optimizer) -> Iterator[None]:
    """Show, inside the block, the weights one would save.

    Schedule-free optimizers train at one point and keep another, their running average. Their own way back is not
    exact, and a run must not depend on how often it was saved, so the first point is put back from a copy.
    """
    switch: Callable[[], None] | None = getattr(optimizer, "eval", None)
    if switch is None:
        yield
        return
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    copies = [parameter.detach().clone() for parameter in trained]
    try:
        switch()  # inside, as it can run out of memory half way
        yield
    finally:
        optimizer.train()  # type: ignore[attr-defined]
        with torch.no_grad():
            for parameter, copy in zip(trained, copies, strict=True):
                parameter.copy_(copy)
