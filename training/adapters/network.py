"""Every trainable layer of a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..draws import generator
from ..errors import UserError
from .lora import LoraLayer


class LoraNetwork:
    """All trainable pairs of a run, in the order of the model's layers."""

    def __init__(self, layers: Iterable[LoraLayer], rank: int, alpha: float) -> None:
        self.layers = list(layers)
        self.rank = rank
        self.alpha = alpha
        for index, layer in enumerate(self.layers):
            layer.index = index

    @classmethod
    def create(
        cls,
        targets: dict[str, nn.Module],
        *,
        rank: int,
        alpha: float,
        dropout: float,
        seed: int,
        device: torch.device,
    ) -> LoraNetwork:
        """Create a fresh pair for each target, each drawn with a generator of its own.

        Raises:
            UserError: There is nothing to train.
        """
        if not targets:
            raise UserError(
                "This MODEL has no layer a LoRA can be trained on: no attention or feed-forward layer was found. "
                "Connect the MODEL of an image model's checkpoint or diffusion-model loader."
            )
        layers = [
            LoraLayer.fresh(path, module, rank, alpha, dropout, generator(seed, "init", index), device)
            for index, (path, module) in enumerate(targets.items())
        ]
        return cls(layers, rank, alpha)

    def parameters(self) -> Iterator[Tensor]:
        """Yield every trainable tensor, down before up, layer by layer."""
        for layer in self.layers:
            yield layer.down
            yield layer.up

    def parameter_groups(self) -> tuple[list[Tensor], list[Tensor]]:
        """The tensors that start at random (down) and those that start at zero (up), which LoRA+ tells apart."""
        return [layer.down for layer in self.layers], [layer.up for layer in self.layers]

    def by_path(self) -> dict[str, LoraLayer]:
        """The layers by the path of the frozen layer that each sits on."""
        return {layer.path: layer for layer in self.layers}

    def saved_tensors(self, names: Mapping[str, str]) -> dict[str, Tensor]:
        """The tensors of a LoRA file: fp32 copies on the CPU, which later training steps leave alone.

        Args:
            names: What each layer is called in the file, by its path.
        """
        tensors: dict[str, Tensor] = {}
        for layer in self.layers:
            tensors |= layer.saved_tensors(names[layer.path], self.alpha)
        return tensors

    def begin_micro_step(self, seed: int, micro_step: int) -> None:
        """Set the position in the run for each layer's dropout."""
        for layer in self.layers:
            layer.begin_micro_step(seed, micro_step)

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """Run the frozen model alone until the block ends."""
        for layer in self.layers:
            layer.is_off = True
        try:
            yield
        finally:
            for layer in self.layers:
                layer.is_off = False
