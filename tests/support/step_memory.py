"""What a training step holds at once, counted apart from the engine's own estimate.

The step runs on PyTorch's fake tensors of the processor, and PyTorch's own MemTracker counts.
"""

from __future__ import annotations

import gc
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

CPU = torch.device("cpu")


class Tracker(MemTracker):
    """Tracks all together: statistics of single modules need weights that are trained."""

    def _nothing(self, *_: Any) -> None: ...

    _pre_fw_hook = _post_fw_hook = _pre_bw_hook = _post_bw_hook = _nothing

    def total(self, which: str) -> int:
        """Bytes held at present, or at most."""
        return int(self.get_tracker_snapshot(which)[CPU]["Total"])


def dry_peak(job: Any) -> int:
    """The engine's estimate."""
    from lora_workbench.lab.bench.cases import our_inputs
    from lora_workbench.lab.bench.models import random_model
    from lora_workbench.training.adapters.network import layers_to_train
    from lora_workbench.training.dry_run import DryRun
    from lora_workbench.training.host.model import HostModel

    plan, latents, captions = our_inputs(job)
    with torch.inference_mode():
        patcher = random_model(job.shape, torch.bfloat16, torch.device("meta"), draws=False)
    patcher.load_device = CPU
    _, batch = plan.largest()
    assert len(batch) == job.batch
    shapes = {batch.bucket: tuple(latents.load(0, False).shape)}
    model = HostModel(patcher)
    layers = layers_to_train(model.targets(), plan.config.rank, plan.config.effective_alpha)
    return DryRun(model, plan, captions, shapes, torch.bfloat16, layers).peak(0, batch, job.rung)


def counted_peak(job: Any) -> int:
    """The independent count. Attention is PyTorch's flash attention."""
    from lora_workbench.lab.bench.cases import our_inputs
    from lora_workbench.lab.bench.models import random_model
    from lora_workbench.training.adapters.network import layers_to_train, make_network
    from lora_workbench.training.host.frozen import Differentiable
    from lora_workbench.training.host.model import HostModel
    from lora_workbench.training.rung import Ladder
    from lora_workbench.training.step import Setup, training_step

    plan, latents, captions = our_inputs(job)
    _, batch = plan.largest()
    assert plan.images_per_step == job.batch  # kept by the plan: fake tensors have no order to shuffle by
    found = 0

    def once() -> None:
        nonlocal found
        gc.collect()  # what a first try held
        tracker = Tracker()
        tracker.track_external(*(thing for thing in gc.get_objects() if issubclass(type(thing), FakeTensor)))
        before = tracker.total("current")
        with tracker:
            training_step(setup, batch, 0)
        found = tracker.total("peak") - before

    # The engine takes every unknown kind of tensor for a quantized one.
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        mock.patch.object(FakeTensor, "dequantize", lambda tensor: tensor, create=True),
    ):
        model = HostModel(random_model(job.shape, torch.bfloat16, CPU, draws=False))
        layers = layers_to_train(model.targets(), 16, 16.0)
        network = make_network(layers, dropout=0.0, seed=0, dtype=torch.bfloat16, device=CPU)
        setup = Setup(model, latents, captions, plan, network, torch.bfloat16, Ladder([job.rung]))
        made = Differentiable(
            model.model, network, dtype=torch.bfloat16, device=CPU, rung=job.rung
        )
        with made.entered():
            made.rehearse(once, compares=False)
    return found
