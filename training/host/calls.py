"""What a host's call of a layer may ask for besides the layer itself.

From 0.38 on the host's models pass keywords that its quantized layers fuse into one kernel. Each is honoured here by
its eager formula. One that is not known is refused by name: a model trained without it would be another model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.ops
import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import UserError


def _swiglu(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "swiglu": _swiglu,
}


def called(
    path: str, layer: Callable[[Tensor], Tensor], x: Tensor, args: tuple[Any, ...], keywords: dict[str, Any]
) -> Tensor:
    """Call a layer as the host does.

    Args:
        path: Of the layer, for messages.
        layer: Its computation.
        x: Its input.
        args: Further positional arguments.
        keywords: `input_act` (an activation of the input: `gelu_tanh`, `swiglu`, or `rms_norm` with `act_weight` and
            `act_eps`), `residual` (what the output is added to) and `residual_scale` (its factor), `out_dtype`.

    Raises:
        UserError: There is anything else.
    """
    left = dict(keywords)
    activation, weight, eps = left.pop("input_act", None), left.pop("act_weight", None), left.pop("act_eps", 0.0)
    residual, scale = left.pop("residual", None), left.pop("residual_scale", None)
    dtype = left.pop("out_dtype", None)
    if args or any(value is not None for value in left.values()):
        name = next(iter(left), f"{len(args) + 1} values")
        raise UserError(
            f"This version of ComfyUI calls the layer {path} with {name!r}, which LoRA Workbench does not know. The "
            "LoRA would be trained on another model. Update LoRA Workbench."
        )
    y = layer(_activated(path, x, activation, weight, eps))
    if residual is not None:
        y = residual + y if scale is None else torch.addcmul(residual, y, scale.to(y.dtype))
    return y if dtype is None else y.to(dtype)


def _activated(path: str, x: Tensor, name: str | None, weight: Tensor | None, eps: float) -> Tensor:
    if name is None:
        return x
    if name == "rms_norm":
        weight = None if weight is None else weight.to(x.device, x.dtype)
        return F.rms_norm(x, x.shape[-1:], weight, eps)
    known = _ACTIVATIONS.get(name) or getattr(comfy.ops, "INPUT_ACT_EAGER", {}).get(name)
    if known is None:
        raise UserError(
            f"This version of ComfyUI calls the layer {path} with the activation {name!r}, which LoRA Workbench does "
            "not know. The LoRA would be trained on another model. Update LoRA Workbench."
        )
    return known(x)  # type: ignore[no-any-return]
