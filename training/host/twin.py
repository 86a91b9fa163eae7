"""A MODEL on tensors without data: it shows what a step would keep in memory, and touches neither model nor device."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from .layers import is_conv, is_linear, weight_shape
from .model import HostModel

META = torch.device("meta")
_CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class Twin(HostModel):
    """A model of the same layers and sizes whose tensors hold no data.

    Weights lie in the compute dtype, as if each were resident: what they take is known without trying.

    Args:
        model: The model as it is.
        dtype: The compute dtype.
    """

    def __init__(self, model: HostModel, dtype: torch.dtype) -> None:
        self.original = model
        self.patcher = model.patcher
        self.device = META
        self.transformer_options = dict(model.transformer_options)
        self.model = _without_data(model.model, dtype)
        self.text = model.text and model.text.without_data(_without_data(model.text.modules, dtype), META)
        self._sampling = _without_data(model.sampling, torch.float32)

    @property
    def sampling(self) -> Any:
        """The noise schedule, on tensors without data."""
        return self._sampling

    def sigma_table(self) -> Tensor:
        """The noise levels of the model's own schedule."""
        return self.original.sigma_table()


def _without_data(module: nn.Module, dtype: torch.dtype) -> Any:
    """A copy of a module and all below it, with tensors that hold no data.

    What is no module and no tensor is shared with the original, but not the containers it lies in: a model that keeps
    something there for its next call must not find a tensor without data.
    """
    return _twin(module, dtype, {})


def _twin(module: nn.Module, dtype: torch.dtype, made: dict[int, nn.Module]) -> nn.Module:
    if id(module) in made:
        return made[id(module)]
    module = getattr(module, "_orig_mod", module)  # compiled
    kind: type[nn.Module] = type(module)
    is_layer = is_linear(module) or is_conv(module)
    if is_layer:  # packed and quantized weights count by their shape
        kind = nn.Linear if is_linear(module) else _CONVS[len(weight_shape(module)) - 2]
    new = made[id(module)] = kind.__new__(kind)
    own = {name: _copied(value) for name, value in vars(module).items() if not name.endswith("_hooks")}
    own |= {name: type(value)() for name, value in vars(module).items() if name.endswith("_hooks")}
    if is_layer:
        # Not another node's code on top, pages, patches, or a weight that is no parameter.
        left = ("forward", "_v", "weight", "bias", "cast_bias_weight")
        own = {name: value for name, value in own.items() if name not in left and not name.endswith("_function")}
    new.__dict__.update(own)
    for tensors in ("_parameters", "_buffers"):
        mine = getattr(module, tensors)
        new.__dict__[tensors] = {name: _empty(value, dtype) for name, value in mine.items()}
    if is_layer:
        _shape_layer(new, module, dtype)
    new.__dict__["_modules"] = {
        name: None if child is None else _twin(child, dtype, made) for name, child in module._modules.items()
    }
    return new


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _empty(value, value.dtype)
    return copy.copy(value) if isinstance(value, (dict, list, set)) else value


def _empty(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if tensor is None:
        return None
    wanted = dtype if tensor.dtype in (torch.float16, torch.bfloat16) else tensor.dtype
    empty = torch.empty(tuple(tensor.shape), dtype=wanted, device=META)
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty


def _shape_layer(new: Any, module: Any, dtype: torch.dtype) -> None:
    """Give a layer's twin a weight and a bias in the compute dtype, of the shapes that it computes with."""
    shape = weight_shape(module)
    tensors: dict[str, Tensor | None] = {"weight": torch.empty(shape, dtype=dtype, device=META), "bias": None}
    if module.bias is not None:
        tensors["bias"] = torch.empty(shape[0], dtype=dtype, device=META)
    new.__dict__["_parameters"] = {
        name: None if tensor is None else nn.Parameter(tensor, requires_grad=False) for name, tensor in tensors.items()
    }
    new.__dict__["_buffers"] = {}  # such as the scales of a quantized weight
