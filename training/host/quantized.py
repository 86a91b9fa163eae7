"""Quantized layers: what they are called, what they hold, and which of them cannot be trained."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import comfy.ops
import torch
from torch import Tensor, nn

from ..errors import UserError

# Weights are computed with in these, after a cast at most, or are no weights.
_PLAIN = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.int64,
    torch.bool, torch.complex64, torch.complex128,
)  # fmt: skip
ADVICE = "Load the bf16 or fp8 file of this model."


def is_wrapped(tensor: Any) -> bool:
    """Return whether a tensor wraps packed data and unpacks itself, as the host's QuantizedTensor does."""
    return isinstance(tensor, Tensor) and hasattr(type(tensor), "__tensor_flatten__")


def is_packed(tensor: Any) -> bool:
    """Return whether a cast alone does not give the values of a tensor."""
    return isinstance(tensor, Tensor) and (is_wrapped(tensor) or tensor.dtype not in _PLAIN)


def quantization(module: Any) -> str | None:
    """Return the name of a layer's quantization, such as `nvfp4` or `Q4_K`; None where a cast gives its weight."""
    held = [module._parameters.get("weight"), *module._parameters.values(), *module._buffers.values()]
    packed = next((tensor for tensor in held if is_packed(tensor)), None)
    if packed is None:
        return None
    state = getattr(packed, "quant_state", None)  # of bitsandbytes
    layout = getattr(packed, "_layout_cls", None) or getattr(packed, "_layout_type", None)
    for name in (
        getattr(module, "quant_format", None),
        getattr(getattr(packed, "tensor_type", None), "name", None),  # of a GGUF file
        getattr(state, "quant_type", None),
        layout,
    ):
        if isinstance(name, str):
            return name
    return str(packed.dtype).removeprefix("torch.")


def stored_size(module: nn.Module) -> int:
    """Return the bytes that a layer's own tensors take as they are stored, packed ones with their scales."""
    return sum(_bytes(tensor) for held in (module._parameters, module._buffers) for tensor in held.values())


def _bytes(tensor: Any) -> int:
    if tensor is None:
        return 0
    if is_wrapped(tensor):
        return sum(_bytes(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    return int(tensor.numel() * tensor.element_size())  # a GGUF tensor's shape is that of its values


def unpacked(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a weight as a plain tensor in a dtype. A tensor of the host is left as it is."""
    if is_wrapped(weight):
        held: Any = weight
        parameters = getattr(held, "_layout_params", None)
        if isinstance(parameters, dict):  # ComfyUI 0.3.75, where `to` writes the dtype into the host's own tensor
            held = type(held)(held._qdata, held._layout_type, {**parameters, "orig_dtype": dtype})
        else:
            held = held.to(dtype)
        return held.dequantize().to(dtype)  # type: ignore[no-any-return]
    if type(weight) not in (Tensor, nn.Parameter):
        weight = weight.as_subclass(Tensor)
    return weight.to(dtype)


def refuse_unknown(path: str, module: nn.Module) -> None:
    """Refuse a module that is no layer of the engine and computes with packed weights.

    Raises:
        UserError: Names the module, its class and its quantization.
    """
    if isinstance(module, nn.Embedding) or hasattr(module, "cast_bias_weight"):
        return  # needs no gradient; unpacks its weight for torch, whose gradient is right
    is_layer = hasattr(module, "in_features") or "Linear" in type(module).__name__
    held: list[Tensor | None] = [*module._parameters.values(), *(module._buffers.values() if is_layer else ())]
    if any(tensor is not None and tensor.ndim > 1 and is_packed(tensor) for tensor in held):
        raise UserError(
            f"The layer {path} is quantized as {quantization(module)} in a class that cannot be trained "
            f"({type(module).__name__}). {ADVICE}"
        )


def arises_in_a_layer(error: BaseException) -> bool:
    """Return whether an error says nothing of a layer's input: it was raised where a layer gets its weight."""
    frames = traceback.extract_tb(error.__traceback__)
    if any(frame.name == "_take" and Path(frame.filename).parent == Path(__file__).parent for frame in frames):
        return True
    if isinstance(error, RuntimeError):
        return False  # the host's own layers raise it for an input of another width
    host = Path(comfy.ops.__file__).parent
    passed = (Path(__file__).parents[1], Path(torch.__file__).parent)
    callers = [path for path in (Path(frame.filename) for frame in frames) if not any(map(path.is_relative_to, passed))]
    return bool(callers) and callers[-1] in (host / "ops.py", host / "quant_ops.py")
