"""How the model calls a frozen layer and how the host keeps its weight: values and gradients against plain torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDE, OUT, RANK = 8, 6, 2
GAIN, SCALE = torch.linspace(0.5, 1.5, WIDE), torch.linspace(-1, 1, OUT)


def swiglu(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


# What a call asks for; the same with a plain layer f, an input x and a residual r.
CALLS: dict[str, tuple[Callable[[Tensor], dict[str, Any]], Callable[..., Tensor]]] = {
    "nothing": (lambda r: {}, lambda f, x, r: f(x)),
    "gelu": (lambda r: {"input_act": "gelu_tanh"}, lambda f, x, r: f(F.gelu(x, approximate="tanh"))),
    "swiglu": (lambda r: {"input_act": "swiglu"}, lambda f, x, r: f(swiglu(x))),
    "norm": (
        lambda r: {"input_act": "rms_norm", "act_weight": GAIN, "act_eps": 0.1},
        lambda f, x, r: f(x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 0.1) * GAIN),
    ),
    "residual": (lambda r: {"residual": r}, lambda f, x, r: r + f(x)),
    "scaled residual": (
        lambda r: {"residual": r, "residual_scale": SCALE}, lambda f, x, r: r + SCALE * f(x)
    ),
    "dtype": (lambda r: {"out_dtype": torch.float64}, lambda f, x, r: f(x).double()),
    "all": (
        lambda r: {"input_act": "swiglu", "residual": r, "residual_scale": SCALE, "out_dtype": torch.float64},
        lambda f, x, r: (r + SCALE * f(swiglu(x))).double(),
    ),
}  # fmt: skip


class Model(nn.Module):
    """A model of one layer, as Differentiable takes it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.manual_cast_dtype = None
        self.diffusion_model = nn.Module()
        self.diffusion_model.proj = layer


@contextmanager
def adapted(layer: nn.Module, dtype: torch.dtype = torch.float32, copies: int = 0) -> Iterator[Any]:
    """The network of a differentiable model of this layer; its matrices are random."""
    from lora_workbench.training.adapters.lora import LoraAdapter
    from lora_workbench.training.adapters.network import Network
    from lora_workbench.training.host.frozen import Differentiable
    from lora_workbench.training.rung import Rung

    draw = torch.Generator().manual_seed(3)
    shapes = [(RANK, WIDE), (OUT, RANK)]
    down, up = (torch.randn(shape, generator=draw) for shape in shapes)
    cpu = torch.device("cpu")
    with torch.inference_mode(False), torch.enable_grad():
        network = Network([LoraAdapter("proj", down, up, 1.0, 0.0)], dtype, cpu)
        made = Differentiable(Model(layer), network, dtype=dtype, device=cpu, rung=Rung(copies=copies > 0))
        with made.entered():
            yield network


def host_layer(dtype: torch.dtype = torch.float32, bias: bool = True) -> Any:
    """One of the host's linear layers, its tensors made in inference mode."""
    import comfy.ops

    with torch.inference_mode():
        layer = comfy.ops.manual_cast.Linear(WIDE, OUT, bias=bias, dtype=dtype)
        draw = torch.Generator().manual_seed(4)
        for name, tensor in list(layer.named_parameters()):
            value = torch.randn(tensor.shape, generator=draw).to(dtype)
            setattr(layer, name, nn.Parameter(value, requires_grad=False))
    return layer


def plain(layer: Any, network: Any, is_adapted: bool) -> tuple[Callable[[Tensor], Tensor], list[Tensor]]:
    """The same in plain torch, and the leaves that stand for the LoRA's matrices."""
    weight, bias = layer.weight.detach().float().clone(), None
    bias = layer.bias.detach().float().clone()
    down, up = (view.master.detach().clone().requires_grad_() for view in network.flat.views)
    more = network.adapters[0].scale if is_adapted else 0.0
    return lambda x: F.linear(x, weight, bias) + more * (x @ down.t() @ up.t()), [down, up]


@pytest.mark.parametrize("is_adapted", [True, False])
@pytest.mark.parametrize("call", list(CALLS))
def test_a_call_with_keywords(call: str, is_adapted: bool, comfy_host: Any) -> None:
    keywords, meaning = CALLS[call]
    layer, draw = host_layer(), torch.Generator().manual_seed(5)
    halves = 2 if "swiglu" in (call, keywords(SCALE).get("input_act")) else 1
    first = torch.randn(2, 3, WIDE * halves, generator=draw)
    residual = torch.randn(2, 3, OUT, generator=draw)
    with adapted(layer) as network:
        network.adapters[0].is_off = not is_adapted
        x, r = first.clone().requires_grad_(), residual.clone().requires_grad_()
        got = layer(x, **keywords(r))
        reference, leaves = plain(layer, network, is_adapted)
        other_x, other_r = first.clone().requires_grad_(), residual.clone().requires_grad_()
        wanted = meaning(reference, other_x, other_r)
        assert got.dtype == wanted.dtype
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
        weigh = torch.randn(got.shape, generator=draw, dtype=got.dtype)
        (got * weigh).sum().backward()
        (wanted * weigh).sum().backward()
        torch.testing.assert_close(x.grad, other_x.grad, rtol=1e-4, atol=1e-5)
        if other_r.grad is not None:
            torch.testing.assert_close(r.grad, other_r.grad, rtol=1e-4, atol=1e-5)
        for view, leaf in zip(network.flat.views, leaves, strict=True):
            torch.testing.assert_close(
                view.total, leaf.grad if is_adapted else torch.zeros_like(leaf), rtol=1e-4, atol=1e-5
            )


@pytest.mark.parametrize(
    ("call", "named"),
    [({"scale_output": 2}, "'scale_output'"), ({"input_act": "mish"}, "'mish'"), ((1,), "'2 values'")],
)
def test_an_unknown_call_is_refused_by_name(call: Any, named: str, comfy_host: Any) -> None:
    from lora_workbench.training.errors import UserError

    layer = host_layer()
    with adapted(layer), pytest.raises(UserError, match=f"the layer proj with .*{named}.*Update LoRA Workbench"):
        layer(torch.zeros(1, WIDE), **call) if isinstance(call, dict) else layer(torch.zeros(1, WIDE), *call)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("copies", [0, 1 << 20])
def test_resident_copied_and_borrowed_are_one(stored: torch.dtype, copies: int, comfy_host: Any) -> None:
    """Computed in fp32, whatever the host stores: an alias of its storage, a copy, or cast for each use."""
    layer = host_layer(stored)
    before = {name: (tensor, tensor.detach().float().clone()) for name, tensor in layer.named_parameters()}
    with adapted(layer, copies=copies) as network:
        x = torch.randn(5, WIDE, requires_grad=True)
        reference, _ = plain(layer, network, is_adapted=True)
        torch.testing.assert_close(layer(x), reference(x))
        (got,) = torch.autograd.grad(layer(x).square().sum(), x)
        (wanted,) = torch.autograd.grad(reference(x).square().sum(), x)
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    assert "forward" not in vars(layer)
    for name, tensor in layer.named_parameters():
        assert tensor is before[name][0] and torch.equal(tensor.float(), before[name][1])


def test_tensors_of_other_layers_come_to_the_device(comfy_host: Any) -> None:
    """The host may leave a norm on the CPU and cast it for each use: backward would need what it cast."""
    import comfy.ops
    from lora_workbench.training.host.frozen import _swap_tensors, _Undo

    device = torch.device("meta")
    with torch.inference_mode():
        norm = comfy.ops.manual_cast.LayerNorm(4, dtype=torch.float16)
    with _Undo() as undo:
        _swap_tensors(undo, norm, torch.bfloat16, device)
        assert {(p.device, p.dtype) for p in norm.parameters()} == {(device, torch.bfloat16)}
    assert norm.weight.device.type == "cpu" and norm.weight.dtype == torch.float16
