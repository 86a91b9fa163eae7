"""What a step of ours costs, by count: no more than lab/bench/results/launches.csv says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest


@pytest.fixture
def launches(comfy_host: Any) -> Iterator[Any]:
    """The module; its narrow models gain nothing from threads, which wait for each other on a busy machine."""
    import torch
    from lora_workbench.lab.bench import launches

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield launches
    torch.set_num_threads(threads)


@pytest.fixture
def stored(comfy_host: Any) -> dict[str, float]:
    """What was stored for this ComfyUI, by quantity."""
    from lora_workbench.lab.bench.results import read

    version = ".".join(map(str, comfy_host.version))
    rows = [row for row in read("launches") if row["comfyui"] == version and not row["gpu"]]
    found = {row["quantity"]: float(row["ours"]) for row in rows}
    return found or pytest.skip(f"nothing was counted on ComfyUI {version}")


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_makes_no_more_calls_than_stored(
    precision: str, checkpointing: bool, launches: Any, stored: dict[str, float]
) -> None:
    found = launches.count_step_of_ours(replace(launches.NARROW, precision=precision, checkpointing=checkpointing))
    most = stored[launches.CALLS[precision, checkpointing].quantity]
    assert 1000 < found["calls"] <= 1.02 * most  # the model alone makes more than a thousand
    if precision == "bf16":
        assert found["syncs"] <= stored[launches.SYNCS.quantity]


@pytest.mark.long
def test_no_more_is_kept_for_backward_than_stored(launches: Any, stored: dict[str, float]) -> None:
    assert 1 < launches.saved()["ours"] <= 1.02 * stored[launches.SAVED.quantity]


def test_a_call_and_a_wait_are_counted_and_a_view_is_not(comfy_host: Any) -> None:
    import torch
    from lora_workbench.lab.bench.counting import Calls

    weight = torch.ones(2, 3, requires_grad=True)
    with Calls() as counted:
        weight.view(3, 2).mul(2).sum().backward()
    assert counted.calls["mul"] == 2, "one of them in backward"
    assert "view" not in counted.calls and counted.waits == 0
    with Calls() as counted:
        weight.sum().item()
    assert counted.waits == 1
