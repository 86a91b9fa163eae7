"""What counts as held memory, on tensors without data."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from lora_workbench.training.allocations import Allocations
from torch import Tensor
from torch.nn import functional as F

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
N = 1 << 20
SIZE = 4 * N  # bytes of N numbers in fp32


def empty(*shape: int, **settings: object) -> Tensor:
    return torch.empty(shape, device="meta", **settings)  # type: ignore[call-overload,no-any-return]


def test_a_storage_counts_once_until_its_last_view_is_gone() -> None:
    with Allocations(CPU) as counted:
        whole = empty(N)
        part, square = whole[: N // 2], whole.view(1024, 1024).t()
        again = square.contiguous()
        assert counted.held == 2 * SIZE
        del again
        del whole, part
        assert counted.held == SIZE, "a view still holds it"
        del square
        assert counted.held == 0
    assert counted.peak == 2 * SIZE


def test_what_was_there_before_counts_nothing() -> None:
    weight = empty(1024, 1024)
    with Allocations(CPU) as counted:
        turned = weight.t().contiguous()[:10]
        weight.add_(1)
        assert counted.held == SIZE, "only the copy"
        del turned
        assert counted.held == 0
        kept = torch.zeros(N)
        assert counted.held == 0 and len(kept) == N, "it has data"


def test_what_outlives_the_block_is_not_freed_twice() -> None:
    with Allocations(CPU) as counted:
        kept = empty(N)
    assert counted.held == SIZE
    later = empty(N)
    assert counted.held == SIZE, "made after the block"
    del kept, later
    assert counted.held == 0


def test_the_peak_can_lie_in_backward() -> None:
    """Forward: exp keeps its result, twice. Backward: a gradient of the same size besides."""
    x = empty(N, requires_grad=True)
    with Allocations(CPU) as counted:
        loss = x.exp().exp().sum()
        forward = counted.peak
        loss.backward()
        del loss
    assert forward == 2 * SIZE + 4, "and the sum"
    assert 3 * SIZE <= counted.peak <= 3 * SIZE + 64
    assert counted.held == SIZE, "the gradient of x"


@pytest.mark.parametrize("needs_grad", [False, True])
def test_attention_keeps_its_inputs_its_output_and_a_number_for_each_row(needs_grad: bool) -> None:
    batch, heads, length, width = 2, 4, 4096, 64
    plain = F.scaled_dot_product_attention
    flat = [empty(batch, length, heads * width, requires_grad=needs_grad) for _ in range(3)]
    size, rows = 4 * flat[0].numel(), 4 * batch * heads * length
    with Allocations(CPU) as counted:
        q, k, v = (one.view(batch, length, heads, width).transpose(1, 2) for one in flat)
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=0.0)
        assert out.shape == q.shape
        joined = out.transpose(1, 2).reshape(batch, length, heads * width)
        assert counted.held == size + rows * needs_grad, "joining the heads copies nothing"
        assert counted.peak == size + rows
        if needs_grad:
            joined.backward(empty(*joined.shape))
    assert counted.peak <= 6 * size, "no matrix of all pairs of rows"
    assert F.scaled_dot_product_attention is plain


def test_attention_writes_its_output_as_its_input_lies() -> None:
    """Where a model turned q before, as with rotary embeddings, joining the heads copies."""
    with Allocations(CPU) as counted:
        q = empty(2, 4, 1024, 64)
        out = F.scaled_dot_product_attention(q, q, q)
        joined = out.transpose(1, 2).reshape(2, 1024, 256)
        assert counted.held == 3 * joined.nbytes


def test_attention_between_texts_and_pictures() -> None:
    """Other numbers of rows, another width of the values."""
    with Allocations(CPU):
        out = F.scaled_dot_product_attention(empty(1, 2, 100, 8), empty(1, 2, 7, 8), empty(1, 2, 7, 16))
    assert out.shape == (1, 2, 100, 16)


def test_with_data_attention_is_as_ever() -> None:
    q = torch.randn(1, 2, 5, 8)
    wanted = F.scaled_dot_product_attention(q, q, q)
    with Allocations(CPU) as counted:
        assert torch.equal(F.scaled_dot_product_attention(q, q, q), wanted)
    assert counted.peak == 0


def of_a_norm(device: torch.device, weight: Tensor | None = None) -> Allocations:
    x = empty(1024, 1024, dtype=torch.bfloat16, requires_grad=True)
    with Allocations(device) as counted:
        kept = torch.rms_norm(x, (1024,), weight, 1e-6)
        assert counted.held >= kept.nbytes
        counted.forward = counted.held  # type: ignore[attr-defined]
        kept.backward(empty(1024, 1024, dtype=torch.bfloat16))
    return counted


@pytest.mark.skipif(not hasattr(torch.ops.aten, "_fused_rms_norm"), reason="this PyTorch has no such kernel")
def test_an_nvidia_card_has_a_kernel_for_norms() -> None:
    """It keeps its input and a number for each row; elsewhere each operation keeps its own."""
    plain = torch.rms_norm
    weight = empty(1024, dtype=torch.bfloat16)
    fused = of_a_norm(CUDA, weight)
    assert fused.forward == SIZE // 2 + 4 * 1024  # type: ignore[attr-defined]
    assert fused.forward < of_a_norm(CPU, weight).forward  # type: ignore[attr-defined]
    assert torch.rms_norm is plain


@pytest.mark.parametrize("fails", [lambda: empty(2, 3) @ empty(2, 3), lambda: 1 / 0])
def test_an_error_leaves_nothing_replaced(fails: Callable[[], object]) -> None:
    plain, norm = F.scaled_dot_product_attention, torch.rms_norm
    with pytest.raises((RuntimeError, ZeroDivisionError)), Allocations(CUDA):
        fails()
    assert F.scaled_dot_product_attention is plain and torch.rms_norm is norm
    with Allocations(CPU) as counted:
        empty(N)
    assert counted.peak == SIZE
