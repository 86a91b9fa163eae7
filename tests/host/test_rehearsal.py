"""The trial step: what it adapts to, and what it refuses."""

from __future__ import annotations

import math
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn


def test_a_rehearsal_that_fails_holds_nothing(comfy_host):
    """The first attempt's activations are gone when the second begins."""
    import weakref

    from lora_workbench.training.host.frozen import Differentiable
    from lora_workbench.training.rung import Rung

    attempts = []

    def step():
        activations = torch.zeros(8)
        assert all(earlier() is None for earlier in attempts)
        attempts.append(weakref.ref(activations))
        if len(attempts) == 1:
            raise RuntimeError("one of the variables has been modified by an inplace operation")

    network = mock.Mock()
    made = Differentiable(
        None, network, dtype=torch.float32, device=torch.device("cpu"), rung=Rung()
    )  # fmt: skip
    made.rehearse(step)
    assert len(attempts) == 2


class Once(nn.Module):
    """A block whose layer is doubled in place after what needs it, or that computes something else each time."""

    def __init__(self, kind: str) -> None:
        import comfy.ops

        super().__init__()
        self.kind, self.calls = kind, 0
        with torch.inference_mode():
            self.proj = comfy.ops.manual_cast.Linear(4, 4, dtype=torch.float32)
            self.proj.weight = nn.Parameter(torch.eye(4), requires_grad=False)
            self.proj.bias = nn.Parameter(torch.zeros(4), requires_grad=False)

    def forward(self, x: Any) -> Any:
        y = self.proj(x).sigmoid()
        self.calls += 1
        return y.mul_(2) if self.kind == "in place" else y * self.calls


@pytest.mark.parametrize(
    ("kind", "checkpointing", "said"),
    [
        ("in place", False, r"This MODEL \(Module\) changes values in place"),
        ("in place", True, r"This MODEL \(Module\) changes values in place"),
        ("another", True, r"the gradients of a block \(Once\) are off by .*Turn gradient_checkpointing off"),
        ("another", False, None),
    ],
)
def test_a_model_whose_gradients_would_be_wrong_is_refused(
    kind: str, checkpointing: bool, said: str | None, comfy_host: Any
) -> None:
    from lora_workbench.training.adapters.lora import LoraAdapter
    from lora_workbench.training.adapters.network import Network
    from lora_workbench.training.errors import UserError
    from lora_workbench.training.host.frozen import Differentiable
    from lora_workbench.training.rung import Rung

    model = nn.Module()
    model.manual_cast_dtype, model.diffusion_model = None, nn.Module()
    model.diffusion_model.blocks = nn.ModuleList([Once(kind)])
    cpu = torch.device("cpu")
    network = Network([LoraAdapter("blocks.0.proj", torch.ones(1, 4), torch.ones(4, 1), 1.0, 0.0)], torch.float32, cpu)
    made = Differentiable(
        model, network, dtype=torch.float32, device=cpu, rung=Rung(checkpointing=checkpointing)
    )  # fmt: skip
    with made.entered():

        def step() -> None:
            model.diffusion_model.blocks[0](torch.ones(2, 4)).sum().backward()

        if said is None:
            made.rehearse(step)
        else:
            with pytest.raises(UserError, match=said):
                made.rehearse(step)
        assert "forward" in vars(model.diffusion_model.blocks[0].proj)
    assert "forward" not in vars(model.diffusion_model.blocks[0].proj)


def test_what_is_not_finite_in_both_is_no_difference(comfy_host: Any) -> None:
    from lora_workbench.training.host.recompute import _apart

    plain = torch.tensor([1.0, math.inf, -4.0, math.nan])
    assert _apart(plain, torch.tensor([1.0, math.nan, -4.0, math.inf])) == 0
    assert _apart(plain, torch.tensor([1.0, math.inf, -3.0, math.nan])) == 0.25
    assert _apart(plain, torch.tensor([1.0, 2.0, -4.0, math.nan])) == math.inf
