"""Layers of a GGUF file as ComfyUI-GGUF makes them: packed bytes for a weight, and a method that unpacks them.

The pack is no dependency of the tests. What it promises is short: a weight's `shape` is that of its values while its
storage holds bytes, `tensor_type` and `tensor_shape` say what they are, and `cast_bias_weight` gives weight and bias.
"""

from __future__ import annotations

from typing import Any

import gguf
import torch
from torch import Tensor, nn


class PackedTensor(Tensor):
    """The bytes of a quantized weight, under the shape of its values."""

    tensor_type: Any
    tensor_shape: torch.Size

    @staticmethod
    def of(values: Tensor, kind: str) -> PackedTensor:
        """Quantize values, rows of which are a multiple of 32 long once all but the first dimension are one."""
        rows = values.detach().float().reshape(values.shape[0], -1).numpy()
        packed = gguf.quants.quantize(rows, gguf.GGMLQuantizationType[kind])
        made = torch.from_numpy(packed).as_subclass(PackedTensor)
        made.tensor_type, made.tensor_shape = gguf.GGMLQuantizationType[kind], torch.Size(values.shape)
        return made

    @property
    def shape(self) -> torch.Size:  # type: ignore[override]
        return getattr(self, "tensor_shape", None) or self.size()

    def to(self, *args: Any, **keywords: Any) -> Any:
        made = super().to(*args, **keywords)
        made.tensor_type, made.tensor_shape = self.tensor_type, self.tensor_shape
        return made

    def detach(self) -> Any:
        return self

    def clone(self, *_: Any, **__: Any) -> Any:
        return self

    def values(self) -> Tensor:
        """What the bytes stand for."""
        plain = gguf.quants.dequantize(self.as_subclass(Tensor).numpy(), self.tensor_type)
        return torch.from_numpy(plain).reshape(self.tensor_shape)


def packed_operations(kind: str) -> Any:
    """The host's layers, of which those that multiply by a matrix keep it quantized as `kind`."""
    import comfy.ops

    class Packed:
        def _load_from_state_dict(self: Any, state: Any, prefix: str, *rest: Any) -> None:
            self.weight = nn.Parameter(PackedTensor.of(state[f"{prefix}weight"], kind), requires_grad=False)
            if f"{prefix}bias" in state:
                self.bias = nn.Parameter(state[f"{prefix}bias"], requires_grad=False)

        def _save_to_state_dict(self: Any, destination: Any, prefix: str, keep_vars: bool) -> None:
            """How large they are, and no more."""
            for name, held in (("weight", self.weight), ("bias", self.bias)):
                if held is not None:
                    destination[f"{prefix}{name}"] = torch.empty(held.size(), dtype=held.dtype, device="meta")

        def cast_bias_weight(
            self: Any, input: Any = None, dtype: Any = None, device: Any = None, bias_dtype: Any = None
        ) -> tuple[Tensor, Tensor | None]:
            if input is not None:
                dtype = bias_dtype = input.dtype
                device = input.device
            bias = None if self.bias is None else self.bias.to(device, bias_dtype)
            return self.weight.values().to(device, dtype), bias

    class Operations(comfy.ops.manual_cast):
        class Linear(Packed, comfy.ops.manual_cast.Linear):
            def forward_comfy_cast_weights(self, input: Tensor) -> Tensor:
                return nn.functional.linear(input, *self.cast_bias_weight(input))

        class Conv2d(Packed, comfy.ops.manual_cast.Conv2d):
            def forward_comfy_cast_weights(self, input: Tensor) -> Tensor:
                return self._conv_forward(input, *self.cast_bias_weight(input))

    return Operations
