"""What a training step keeps in memory, found by running one on tensors without data."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .adapters.network import fresh_lora
from .allocations import Allocations
from .cache.captions import CaptionStore
from .data.batches import Batch
from .host.frozen import Differentiable
from .host.model import HostModel
from .host.twin import META, Twin
from .plan import Plan
from .step import Setup, training_step


class _Shapes:
    """Latents of the right shapes.

    Args:
        of: Shape of a picture's latent [1, C, (T,) h, w] by the size of its bucket.
    """

    def __init__(self, plan: Plan, of: dict[tuple[int, int], tuple[int, ...]]) -> None:
        self._plan, self._of = plan, of

    def load(self, index: int, flipped: bool) -> Tensor:
        """A latent without data."""
        placement = self._plan.dataset.pictures[index].placement
        assert placement is not None, "not bucketed"
        return torch.empty(self._of[placement.bucket], device=META)

    def mask(self, index: int, flipped: bool) -> None:
        """None: a mask takes next to nothing."""


def step_memory(
    model: HostModel, plan: Plan, captions: CaptionStore, batch: Batch, shapes: dict[tuple[int, int], tuple[int, ...]],
    *, precision: torch.dtype, checkpointing: bool, device: torch.device,
) -> int:  # fmt: skip
    """Bytes that the forward and backward pass of one batch hold at once, apart from weights and the LoRA's state.

    The step runs through the engine on a twin of the model, so every kind of model is counted by the same rule.

    Args:
        model: The model; it is not touched.
        plan: The run's plan.
        captions: The captions of the batch.
        batch: The pictures.
        shapes: Shape of a latent [1, C, (T,) h, w] by bucket.
        precision: The compute dtype.
        checkpointing: Whether blocks are recomputed in backward.
        device: Where the step would run.

    Raises:
        Exception: The model's code needs data to run.
    """
    config = replace(plan.config, dropout=0.0)
    with torch.inference_mode(False), torch.enable_grad():
        twin = Twin(model, precision)
        network = fresh_lora(
            twin.targets(), rank=config.rank, alpha=config.effective_alpha, dropout=0.0, seed=0, dtype=precision,
            device=META,
        )  # fmt: skip
        latents: Any = _Shapes(plan, shapes)
        setup = Setup(twin, latents, captions, Plan(plan.dataset, config, plan.lengths), network, precision)
        made = Differentiable(
            twin.model, network, dtype=precision, device=META, checkpointing=checkpointing, copies=0
        )
        with made.entered():
            counted = Allocations(device)

            def once() -> None:
                nonlocal counted
                with Allocations(device) as counted:
                    training_step(setup, batch, 0)

            made.rehearse(once, compares=False)
    return counted.peak
