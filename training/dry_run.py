"""What a training step keeps in memory, found by running one on tensors without data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .adapters.flat import DENOISER
from .adapters.lora import Trained
from .adapters.network import Network, make_network
from .allocations import Allocations
from .cache.captions import CaptionStore
from .data.batches import Batch
from .data.dataset import Placement
from .host.frozen import Differentiable
from .host.model import HostModel
from .host.twin import META, Twin
from .plan import Plan
from .rung import Ladder, Rung
from .step import Setup, training_step

Shapes = Mapping[tuple[int, int], tuple[int, ...]]  # of a latent [1, C, (T,) h, w], by the bucket's width and height


class _Latents(NamedTuple):
    """Latents of the right shapes, without data."""

    plan: Plan
    shapes: Shapes
    crops: dict[tuple[int, int], Placement] = {}

    def load(self, index: int, flipped: bool, variant: int = 0) -> Tensor:
        """One picture's latent."""
        placement = self.plan.dataset.pictures[index].placement
        assert placement is not None, "not bucketed"
        return torch.empty(self.shapes[placement.bucket], device=META)

    def draw(self, index: int, flipped: bool, variant: int, source: torch.Generator) -> Tensor:
        """One picture's latent."""
        return self.load(index, flipped)

    def mask(self, index: int, flipped: bool, variant: int = 0) -> None:
        """None: a mask takes next to nothing."""


class DryRun:
    """Runs steps on a twin of the model. They go through the engine, so every model is counted by the same rule.

    Args:
        model: The model; it is not touched.
        plan: The run's plan.
        captions: The captions of the batches that are asked for.
        shapes: Shape of the latents by bucket.
        precision: The compute dtype.
        layers: What is trained.
    """

    def __init__(
        self, model: HostModel, plan: Plan, captions: CaptionStore, shapes: Shapes, precision: torch.dtype,
        layers: Sequence[Trained],
    ) -> None:  # fmt: skip
        self._precision, self._device = precision, model.device
        self._plan = Plan(plan.dataset, replace(plan.config, dropout=0.0), plan.lengths)
        self._latents: Any = _Latents(self._plan, shapes)
        self._captions = captions
        self._layers, self._recomputes_text = layers, not plan.config.dropout
        self._twin = Twin(model, precision)
        self._network: Network | None = None

    @property
    def network(self) -> Network:
        """The run's LoRA, without data."""
        if self._network is None:
            layers = [replace(layer, module=self._module(layer), start=None) for layer in self._layers]
            self._network = make_network(layers, dropout=0.0, seed=0, dtype=self._precision, device=META)
        return self._network

    def _module(self, layer: Trained) -> nn.Module:
        """The twin of a layer."""
        if layer.part_of == DENOISER:
            return self._twin.model.diffusion_model.get_submodule(layer.path)  # type: ignore[no-any-return]
        assert self._twin.text is not None
        return self._twin.text.modules.get_submodule(layer.path)

    def peak(self, micro_step: int, batch: Batch, rung: Rung) -> int:
        """Bytes that the forward and backward pass of a batch hold at once, apart from weights and the LoRA's state.

        Args:
            micro_step: The batch's number in the run, which decides its captions.
            batch: The pictures.
            rung: How the step fits into memory.

        Raises:
            Exception: The model's code needs data.
        """
        with torch.inference_mode(False), torch.enable_grad():
            setup = Setup(
                self._twin, self._latents, self._captions, self._plan, self.network, self._precision, Ladder([rung])
            )
            encoders = self._twin.text.trained if self._twin.text else None
            made = Differentiable(
                self._twin.model, self.network, dtype=self._precision, device=META, rung=rung, encoders=encoders,
                recomputes_text=self._recomputes_text,
            )  # fmt: skip
            counted = Allocations(self._device)

            def once() -> None:
                nonlocal counted
                with Allocations(self._device) as counted:
                    training_step(setup, batch, micro_step)

            with made.entered():
                made.rehearse(once, compares=False)
        return counted.peak
