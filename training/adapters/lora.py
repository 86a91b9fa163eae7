"""LoRA: two small matrices parallel to a frozen layer, acting on activations.

    y = f(x) + (alpha / rank) · up(drop(down(x)))                        (Hu et al. 2021, arXiv:2106.09685)

`W + ΔW` is never formed, so a step costs little more than the frozen model's own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..draws import generator
from ..lora import DiffusersTarget
from .adapter import WHOLE, Share
from .flat import DENOISER, Part, View

_DOWN, _UP, _ALPHA = "lora_down.weight", "lora_up.weight", "alpha"  # as kohya's trainer calls them


class LoraAdapter:
    """The trainable pair of one layer; an `Adapter`.

    Attributes:
        path: Path of the frozen layer inside the host's model.
        down: [rank, in] for a linear layer, [rank, in, 1, 1] for a 1×1 convolution; in the run's buffers.
        up: [out, rank] or [out, rank, 1, 1]; initially zero so that training starts at the base model.
        rank: Of the pair.
        alpha: Its output is scaled by alpha / rank.
        is_off: Whether the frozen layer currently runs without the pair.
        drops: Whether dropout is on at present.
        part_of: The model that the layer belongs to.
    """

    down: View
    up: View

    def __init__(
        self, path: str, down: Tensor, up: Tensor, alpha: float, dropout: float, part_of: str = DENOISER
    ) -> None:
        self.path, self.alpha, self.dropout, self.part_of = path, alpha, dropout, part_of
        self._start = (down, up)
        self.rank = down.shape[0]
        self.scale = alpha / self.rank
        self.index = 0
        self.is_off = False
        self.drops = True
        self._draw, self._share = (0, 0), WHOLE
        self._is_conv = down.ndim > 2

    @classmethod
    def of(cls, layer: Trained, dropout: float, draws: torch.Generator) -> LoraAdapter:
        """The pair of a layer: with its given start, or one that changes nothing yet.

        In a fresh pair `down` is drawn from U(-1/√in, 1/√in) (kaiming uniform with a = √5, as kohya and PEFT draw it)
        and `up` is zero.
        """
        if layer.start is not None:
            down, up = layer.start
        else:
            down_shape, up_shape = pair_shapes(layer.module, layer.rank)
            bound = 1 / math.sqrt(down_shape[1])
            down, up = torch.rand(down_shape, generator=draws) * (2 * bound) - bound, torch.zeros(up_shape)
        return cls(layer.path, down, up, layer.alpha, dropout, layer.part_of)

    def parts(self) -> list[Part]:
        """Its two matrices as they start. LoRA+ tells the random one (down) from the zero one (up)."""
        down, up = self._start
        return [Part("down", down, self.part_of), Part("up", up, self.part_of)]

    def place(self, views: list[View]) -> None:
        """Take the places of its matrices in the run's buffers."""
        self.down, self.up = views
        del self._start
        pairs = ((v.used.flatten(1), v.grad.flatten(1)) for v in views)
        (self._down, self._down_grad), (self._up, self._up_grad) = pairs
        self._down_t, self._up_t = self._down.t(), self._up.t()

    def begin_micro_step(self, seed: int, micro_step: int, share: Share) -> None:
        """Fix the dropout draws until the next call, so that a recomputed block drops the same values."""
        self._draw, self._share = (seed, micro_step), share

    def _keep_mask(self, inner: Tensor) -> Tensor:
        """Draw which inner values to keep, scaled to preserve their mean. A part of a batch gets its part of them."""
        seed, micro_step = self._draw
        first, shown, of = self._share
        rows = len(inner)
        source = generator(seed, "dropout", micro_step, self.index, device=inner.device)
        draws = torch.rand(rows * of // shown, *inner.shape[1:], device=inner.device, generator=source)
        keep = draws.narrow(0, rows * first // shown, rows) >= self.dropout
        return keep.to(inner.dtype) / (1 - self.dropout)

    def add_output(self, x: Tensor, y: Tensor) -> tuple[Tensor | None, ...]:
        """Add scale · up(keep ⊙ down(x)) to y [..., out] or [B, out, H, W], in place.

        Returns:
            The inner values, after dropout, and which were kept.
        """
        if self._is_conv:
            inner = torch.matmul(self._down, x.flatten(2))
        else:
            inner = x.reshape(-1, x.shape[-1]) @ self._down_t
        keep = self._keep_mask(inner) if self.dropout and self.drops else None
        if keep is not None:
            inner = inner * keep
        if self._is_conv:
            up = self._up.expand(len(x), *self._up.shape)
            y.flatten(2).baddbmm_(up, inner, alpha=self.scale)
        else:
            y.view(-1, y.shape[-1]).addmm_(inner, self._up_t, alpha=self.scale)
        return inner, keep

    def add_gradients(
        self, grad: Tensor, x: Tensor, kept: tuple[Tensor | None, ...], grad_x: Tensor | None
    ) -> None:
        """Add to the gradients of both matrices, and to that of x unless None, in place."""
        inner, keep = kept
        assert inner is not None
        if self._is_conv:
            self._add_gradients_of_conv(grad.flatten(2), x.flatten(2), inner, keep, grad_x)
            return
        rows, flat = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        self._up_grad.addmm_(flat.t(), inner, alpha=self.scale)
        # The scale is applied to the small result, not to a copy of the whole gradient.
        grad_inner = torch.addmm(inner, flat, self._up, beta=0, alpha=self.scale)
        if keep is not None:
            grad_inner.mul_(keep)
        self._down_grad.addmm_(grad_inner.t(), rows)
        if grad_x is not None:
            grad_x.view(-1, grad_x.shape[-1]).addmm_(grad_inner, self._down)

    def _add_gradients_of_conv(
        self, grad: Tensor, x: Tensor, inner: Tensor, keep: Tensor | None, grad_x: Tensor | None
    ) -> None:
        """The same for x [B, in, HW] and its output's gradient [B, out, HW]."""
        self._up_grad.addbmm_(grad, inner.transpose(1, 2), alpha=self.scale)
        up = self._up_t.expand(len(x), *self._up_t.shape)
        grad_inner = torch.baddbmm(inner, up, grad, beta=0, alpha=self.scale)
        if keep is not None:
            grad_inner.mul_(keep)
        self._down_grad.addbmm_(grad_inner, x.transpose(1, 2))
        if grad_x is not None:
            down = self._down_t.expand(len(x), *self._down_t.shape)
            grad_x.flatten(2).baddbmm_(down, grad_inner)

    def saved_tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of a kohya file: fp32 copies on the CPU, which later training steps leave alone."""
        return {
            f"{name}.{_DOWN}": self.down.master.detach().cpu().clone(),
            f"{name}.{_UP}": self.up.master.detach().cpu().clone(),
            f"{name}.{_ALPHA}": torch.tensor(float(self.alpha)),
        }


@dataclass(frozen=True)
class Trained:
    """One layer to train.

    Attributes:
        path: Of the frozen layer inside its model.
        module: The frozen layer.
        rank: Of its pair.
        alpha: Its output is scaled by alpha / rank.
        part_of: The model that it belongs to: the denoiser, or a text encoder by its kind.
        start: Its matrices down and up; None for a fresh pair.
    """

    path: str
    module: nn.Module
    rank: int
    alpha: float
    part_of: str = DENOISER
    start: tuple[Tensor, Tensor] | None = None


def count_numbers(layers: Iterable[Trained]) -> int:
    """How many numbers the pairs of these layers hold."""
    return sum(layer.rank * sum(_widths(layer.module)) for layer in layers)


def saved_shapes(name: str, layer: Trained) -> dict[str, tuple[int, ...]]:
    """The shapes of a layer's tensors in a kohya file, by the names that `saved_tensors` gives them."""
    down, up = pair_shapes(layer.module, layer.rank)
    return {f"{name}.{_DOWN}": down, f"{name}.{_UP}": up, f"{name}.{_ALPHA}": ()}


def pair_shapes(layer: nn.Module, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of a layer's two matrices, down and up."""
    fan_in, fan_out = _widths(layer)
    kernel = (1, 1) if isinstance(layer, nn.Conv2d) else ()
    return (rank, fan_in, *kernel), (fan_out, rank, *kernel)


def _widths(layer: nn.Module) -> tuple[int, int]:
    """How wide a layer's input and output are."""
    if isinstance(layer, nn.Conv2d):
        return layer.in_channels, layer.out_channels
    return int(layer.in_features), int(layer.out_features)  # type: ignore[arg-type]


def peft_tensors(
    lora: Mapping[str, Tensor], name: str, targets: Sequence[DiffusersTarget]
) -> tuple[dict[str, Tensor], set[str]]:
    """Return one layer's tensors under PEFT's names.

    A layer that diffusers splits becomes several, each with its rows of `lora_B` and a copy of `lora_A`. Programs that
    read these names use scale 1 for a file without alpha, so alpha / rank is multiplied into `lora_B`.

    Args:
        lora: Tensors under kohya's names.
        name: The layer's name there.
        targets: The modules that it is in diffusers.

    Returns:
        `<module>.lora_A.weight` [rank, in, …] and `.lora_B.weight` [rows, rank, …]; the keys of `lora` that they are
        made of.
    """
    down_key, up_key, alpha_key = (f"{name}.{part}" for part in (_DOWN, _UP, _ALPHA))
    down, up = lora[down_key], lora[up_key]
    if alpha_key in lora:
        up = up.float() * (lora[alpha_key].item() / down.shape[0])
    tensors: dict[str, Tensor] = {}
    for target in targets:
        rows = up.shape[0] - target.start if target.rows is None else target.rows
        tensors[f"{target.module}.lora_A.weight"] = down
        tensors[f"{target.module}.lora_B.weight"] = up.narrow(0, target.start, rows)
    return tensors, {down_key, up_key, alpha_key}
