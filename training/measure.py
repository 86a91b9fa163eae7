"""Trains a few steps of a run for their time, and gives everything back."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .adapters.lora import Trained
from .cache.captions import CaptionStore
from .cache.latents import LatentStore, store_latents
from .cache.store import Overlay
from .data.batches import Batch
from .encode import asked_captions, encode_captions
from .errors import UserError
from .events import Sink
from .host import memory
from .host.model import HostModel
from .host.out_of_memory import is_out_of_memory
from .host.vae import HostVAE
from .loop import optimizer_step, why
from .plan import Plan
from .preflight import prepared
from .ready import Ready
from .run.state import NotFinite

_STEPS = 3
_SIMILAR = 1.1  # steps whose pixels differ by less take the same time
_PRESERVED = 4 / 3  # of a picture's time: one more forward pass

Step = tuple[int, list[Batch]]  # the number of its first batch in the run, and its batches


@dataclass(frozen=True)
class Measured:
    """What was measured.

    Attributes:
        seconds_per_step: Mean time of an optimizer step of the run.
        peak: Most bytes that tensors took on the device; None where nothing counts them.
        rung: How the run fitted into memory, in words.
    """

    seconds_per_step: float
    peak: int | None
    rung: str


def measured(
    model: HostModel, clip: Any, vae: Any, plan: Plan, caches: tuple[Overlay, Overlay], sink: Sink,
    layers: Sequence[Trained] | None = None,
) -> Measured:  # fmt: skip
    """Train three steps of a run, from loading the model on, and undo it.

    Steps of several sizes are measured at the least, the middle and the greatest number of pixels. The time of the
    others is interpolated.

    Args:
        model: The model; it is bit-identical afterwards.
        clip: CLIP socket.
        vae: VAE socket.
        plan: The run's plan.
        caches: Of latents and of captions; nothing is written to disk.
        sink: Receives the progress and is checked for a cancel.
        layers: What is trained; None for a fresh pair on each target.

    Raises:
        Cancelled: The user pressed cancel.
        UserError: The run cannot be trained, or a picture of these steps cannot be encoded.
    """
    steps = _numbered(plan)
    chosen = _chosen(plan, steps)
    latents, captions = _stores(model, clip, vae, plan, [*chosen, _largest(plan)], caches, sink)
    times: dict[float, list[float]] = {}
    with prepared(model, plan, latents, captions, sink=sink, layers=layers) as ready:
        # The trial step has made the largest batch warm; the first step of another size is slower than the rest.
        warm = {_load(plan, [plan.largest()[1]])}
        for done, step in enumerate(chosen):
            sink.phase("measuring steps", done, len(chosen))
            load = _load(plan, step[1])
            if load not in warm:
                _timed(ready, step, sink)
                warm.add(load)
            times.setdefault(load, []).append(_timed(ready, step, sink))
        sink.phase("measuring steps", len(chosen), len(chosen))
        peak, rung = memory.peak(model.device), ready.fit.ladder.rung.name
    known = sorted(times)
    means = np.interp([_load(plan, batches) for _, batches in steps], known, [np.median(times[load]) for load in known])
    return Measured(float(np.mean(means)), peak, rung)


def _numbered(plan: Plan) -> list[Step]:
    """The optimizer steps of the first epoch."""
    found, micro_step = [], 0
    for batches in plan.steps(0)[: plan.total]:
        found.append((micro_step, batches))
        micro_step += len(batches)
    return found


def _largest(plan: Plan) -> Step:
    number, batch = plan.largest()
    return number, [batch]


def _chosen(plan: Plan, steps: list[Step]) -> list[Step]:
    """The steps to measure."""
    by_load = sorted(steps, key=lambda step: _load(plan, step[1]))
    least, most = (_load(plan, by_load[at][1]) for at in (0, -1))
    middle = len(by_load) // 2
    if most > _SIMILAR * least and len(by_load) >= _STEPS:
        return [by_load[0], by_load[middle], by_load[-1]]
    return [by_load[(middle + number) % len(by_load)] for number in range(_STEPS)]


def _load(plan: Plan, batches: Iterable[Batch]) -> float:
    """The pixels of a step, which its time follows."""
    pictures = plan.dataset.pictures
    return sum(
        batch.bucket[0] * batch.bucket[1] * (_PRESERVED if pictures[index].preserves_prior else 1)
        for batch in batches
        for index in batch.indices
    )


def _timed(ready: Ready, step: Step, sink: Sink) -> float:
    """Train one optimizer step; return how many seconds it took."""
    run = ready.run
    while True:
        run.micro_step, batches = step
        begun = time.monotonic()
        try:
            optimizer_step(ready.setup, run, batches, sink)
            run.read_all()
            return time.monotonic() - begun
        except NotFinite as error:
            raise UserError(why(ready.setup, error)) from error
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        ready.step_down()  # outside of the error's block: its traceback holds the activations


def _stores(
    model: HostModel, clip: Any, vae: Any, plan: Plan, steps: list[Step], caches: tuple[Overlay, Overlay], sink: Sink
) -> tuple[LatentStore, CaptionStore]:
    """Encode what some steps ask for.

    Raises:
        UserError: A picture cannot be encoded.
    """
    latent_cache, caption_cache = caches
    shown = [
        (index, micro_step, place)
        for first, batches in steps
        for micro_step, batch in enumerate(batches, first)
        for place, index in enumerate(batch.indices)
    ]
    indices = sorted({index for index, _, _ in shown})
    part = plan.dataset.with_pictures(plan.dataset.pictures[index] for index in indices)
    with torch.inference_mode():  # as the host runs nodes
        found = store_latents(part, HostVAE(vae), latent_cache, sink)
        texts = [plan.caption(*one) for one in shown]
        captions = encode_captions(model, asked_captions(model, clip, texts), caption_cache, sink, is_part=True)
    if len(found.dataset.pictures) < len(indices):
        raise UserError(found.dataset.skipped[-1])
    keys, masks = (
        {(indices[number], flipped, variant): key for (number, flipped, variant), key in those.items()}
        for those in (found.keys, found.masks)
    )
    crops = {(indices[number], variant): place for (number, variant), place in found.crops.items()}
    latents = LatentStore(latent_cache, plan.dataset, keys, found.encoded, masks, crops)
    return latents, captions
