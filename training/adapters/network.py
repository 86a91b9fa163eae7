"""Every adapter of a run, and the buffers that hold their tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..draws import generator, seed_for
from ..errors import UserError
from .adapter import WHOLE, Adapter, Share
from .flat import DENOISER, Flat
from .lora import LoraAdapter, Trained


class Network:
    """All adapters of a run, in the order of the model's layers.

    Attributes:
        adapters: One for each trained layer.
        flat: The buffers with all their tensors.
        anchor: Requires a gradient and never gets one (`Adapted`).
    """

    def __init__(self, adapters: Sequence[Adapter], dtype: torch.dtype, device: torch.device) -> None:
        self.adapters = list(adapters)
        own = [adapter.parts() for adapter in self.adapters]
        self.flat = Flat([part for parts in own for part in parts], dtype, device)
        views = iter(self.flat.views)
        for index, (adapter, parts) in enumerate(zip(self.adapters, own, strict=True)):
            adapter.index = index
            adapter.place([next(views) for _ in parts])
        self._step = 0, 0
        self.anchor = torch.zeros(0, device=device, requires_grad=True)

    def by_path(self) -> dict[str, Adapter]:
        """The adapters by the path of the frozen layer that each sits on."""
        return {adapter.path: adapter for adapter in self.adapters}

    def saved_tensors(self, names: Mapping[str, str]) -> dict[str, Tensor]:
        """The tensors of a LoRA file: fp32 copies on the CPU, which later training steps leave alone.

        Args:
            names: What each layer is called in the file, by its path.
        """
        tensors: dict[str, Tensor] = {}
        for adapter in self.adapters:
            tensors |= adapter.saved_tensors(names[adapter.path])
        return tensors

    def begin_micro_step(self, seed: int, micro_step: int, share: Share = WHOLE) -> None:
        """Set the position in the run for each adapter's random draws.

        Args:
            seed: The run's seed.
            micro_step: Micro-steps since the run began.
            share: What part of the batch is shown.
        """
        self._step = seed, micro_step
        for adapter in self.adapters:
            adapter.begin_micro_step(seed, micro_step, share)

    def begin_caption(self, caption: str) -> None:
        """Give each caption of a micro-step draws of its own in the text encoders, whichever pictures share it."""
        seed, micro_step = self._step
        for adapter in self.adapters:
            if adapter.part_of != DENOISER:
                adapter.begin_micro_step(seed_for(seed, caption), micro_step, WHOLE)

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """Run the frozen model alone until the block ends."""
        for adapter in self.adapters:
            adapter.is_off = True
        try:
            yield
        finally:
            for adapter in self.adapters:
                adapter.is_off = False

    @contextmanager
    def without_dropout(self) -> Iterator[None]:
        """Use every inner value until the block ends, as when sampling."""
        for adapter in self.adapters:
            adapter.drops = False
        try:
            yield
        finally:
            for adapter in self.adapters:
                adapter.drops = True


def refuse_nothing_to_train(targets: Mapping[str, nn.Module]) -> None:
    """Say that a model has no layer to train, if so.

    Raises:
        UserError: There is nothing to train.
    """
    if not targets:
        raise UserError(
            "This MODEL has no layer a LoRA can be trained on: no attention or feed-forward layer was found. "
            "Connect the MODEL of an image model's checkpoint or diffusion-model loader."
        )


def layers_to_train(targets: Mapping[str, nn.Module], rank: int, alpha: float) -> list[Trained]:
    """A fresh pair for each target.

    Args:
        targets: Frozen layers of the denoiser by path.
        rank: Of the matrices.
        alpha: The output is scaled by alpha / rank.

    Raises:
        UserError: There is nothing to train.
    """
    refuse_nothing_to_train(targets)
    return [Trained(path, module, rank, alpha) for path, module in targets.items()]


def make_network(
    layers: Sequence[Trained], *, dropout: float, seed: int, dtype: torch.dtype, device: torch.device
) -> Network:
    """Create the LoRA of these layers, each drawn with a generator of its own.

    Args:
        layers: What is trained.
        dropout: Share of inner values dropped, 0 to 1.
        seed: The run's seed.
        dtype: The compute dtype.
        device: Where training computes.
    """
    adapters = [
        LoraAdapter.of(layer, dropout, generator(seed, "init", index)) for index, layer in enumerate(layers)
    ]
    return Network(adapters, dtype, device)
