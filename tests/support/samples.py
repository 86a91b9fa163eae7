"""Runs with samples in this process, and what they leave untouched."""

from __future__ import annotations

from typing import Any

import torch

from .rig import Snapshot
from .session import AGAIN

PROMPTS = "zorp, a photo --d 3\na hat --w 100 --h 64 --n grey"


def options(**settings: Any) -> Any:
    from lora_workbench.training.watch import SampleOptions

    return SampleOptions(**{"prompts": PROMPTS, "width": 64, "height": 64, "steps": 2, "cfg": 2.0, **settings})


class Sink:
    """Keeps what is said, and acts when a step is reported."""

    def __init__(self, on_step=lambda line: None):
        self.lines, self.hints, self.phases, self.on_step, self.is_cancelled = [], [], [], on_step, False

    def phase(self, text, done, total):
        self.phases.append((text, done, total))

    def record(self, run, line):
        self.run = run
        self.lines.append(line)
        if line["kind"] == "step":
            self.on_step(line)

    def step(self, event):
        pass

    def tell(self, text):
        pass

    def hint(self, text):
        self.hints.append(text)

    def cancelled(self):
        return self.is_cancelled

    def take_cancel(self):
        self.is_cancelled = False

    def wish(self, what):
        from lora_workbench.training.run.under_way import known

        known(self.run).wish(what)

    def samples(self):
        return [line for line in self.lines if line["kind"] == "sample"]


def train(parts, dataset, folder, cache, samples=None, sink=None, texts=(), **settings):
    from lora_workbench.training.config import TrainConfig
    from lora_workbench.training.train import train_lora
    from lora_workbench.training.watch import Watch

    config = TrainConfig(**{"name": "run", "steps": 3, "rank": 4, "learning_rate": 1e-2, **AGAIN, **settings})
    with torch.inference_mode():
        return train_lora(
            *parts, dataset, config, root=folder, cache_root=cache, sink=sink or Sink(),
            watch=Watch(samples=samples, picture_metadata=dict(texts)),
        )  # fmt: skip


class Untouched:
    """MODEL, CLIP and VAE before and after a run."""

    def __init__(self, parts):
        import comfy.model_management

        with torch.inference_mode():  # without what another test has applied
            comfy.model_management.load_models_gpu([parts[0], parts[1].patcher])
        self._parts = parts
        self._model, self._state = Snapshot(parts[0]), self._now()

    def _now(self):
        _, clip, vae = self._parts
        modules = clip.cond_stage_model, vae.first_stage_model
        return [tensor.detach().clone() for module in modules for tensor in module.state_dict().values()]

    def check(self, streams=False):
        found = self._model.differences(Snapshot(self._parts[0]))
        # A patched layer gets a new parameter from the host, which takes no gradient. Of what was streamed the host
        # loads the rest when there is room.
        own = ("objects", "grads", "modules") if streams else ("objects", "grads")
        assert [name for name in found if name not in own] == []
        assert all(parameter.grad is None for parameter in self._parts[0].model.parameters())
        # By bytes: the host leaves a tensor that SD1.5 lacks uninitialized, and it can hold NaN.
        as_bytes = [[tensor.reshape(-1).view(torch.uint8) for tensor in state] for state in (self._state, self._now())]
        assert all(torch.equal(one, other) for one, other in zip(*as_bytes, strict=True))
