"""The training loop: epochs, micro-steps, optimizer steps. Everything a step reads or changes is in `Run`."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .adapters.network import LoraNetwork
from .cache.captions import CaptionStore
from .cache.latents import LatentStore
from .config import TrainConfig
from .data.batches import Batch
from .data.dataset import Dataset
from .events import Cancelled, Sink, StepEvent
from .objective import Draw, draw, padding_mask, prediction_losses, timesteps_in_force
from .optimizers import make_optimizer, make_scheduler
from .plan import Plan
from .run.state import Diverged, Run

log = logging.getLogger(__name__)






@dataclass(frozen=True)
class MicroBatch:
    """One forward and backward: a batch of one bucket with what was drawn for it.

    Attributes:
        x0: Clean latents [B, C, (T,) h, w] in the model's scale.
        drawn: Noise and noise levels.
        conds: The model's inputs for each picture.
        mask: Weight of each latent position, or None.
        weights: What each picture's loss is multiplied with [B], or None for 1.
        by_model: Places of the pictures whose target is what the model predicts without the LoRA.
        names: File names, for messages.
        concepts: What each picture's loss is counted for.
    """

    x0: Tensor
    drawn: Draw
    conds: list[dict[str, Any]]
    mask: Tensor | None
    weights: Tensor | None
    by_model: list[int]
    names: tuple[str, ...]
    concepts: tuple[str, ...]


class Trainer:
    """Trains a LoRA on a host model.

    Args:
        model: A `HostModel` (or anything like it), made differentiable by the caller.
        latents: Latents of the bucketed dataset.
        captions: Encoded captions.
        config: The run's settings.
        network: The LoRA on the model.
        sink: Is told of each step and asked for a cancel.
        after_step: Called after each optimizer step with the run and whether an epoch just ended.
    """

    def __init__(
        self,
        model: Any,
        latents: LatentStore,
        captions: CaptionStore,
        config: TrainConfig,
        network: LoraNetwork,
        sink: Sink,
        autocast: torch.dtype | None = None,
        after_step: Callable[[Run, bool], None] | None = None,
    ) -> None:
        self.model, self.latents, self.captions = model, latents, captions
        self.config, self.sink, self.after_step = config, sink, after_step
        self.autocast = autocast
        self.dataset: Dataset = latents.dataset
        self.table = model.sigma_table()
        self.timesteps = timesteps_in_force(config.timesteps, model.is_flow)
        self.plan = Plan(self.dataset, config)
        optimizer = make_optimizer(config, network)
        total = self.plan.total
        self.run = Run(network, optimizer, make_scheduler(config, optimizer, total), total)
        self._good: list[tuple[Tensor, Tensor]] = []
        self._remember_good()
        self._recent: deque[float] = deque(maxlen=100)
        self._of_concepts: dict[str, list[float]] = {}

    def steps_of_epoch(self, epoch: int) -> list[list[Batch]]:
        """The optimizer steps of an epoch, each a list of micro-batches."""
        return self.plan.steps(epoch)

    def rehearse(self) -> None:
        """Do forward and backward of the largest batch and forget them; the run stays at its beginning.

        What does not fit together, or not into memory, shows here, before anything is written.
        """
        micro_step, batch = self.plan.largest()
        micro = self.prepare(batch, micro_step)
        try:
            self._losses(micro).sum().backward()
        finally:
            for parameter in self.run.network.parameters():
                parameter.grad = None

    def train(self) -> Run:
        """Train until the planned number of steps.

        Raises:
            Cancelled: The person pressed cancel; the run holds what was trained so far.
            Diverged: A loss or gradient is not finite; the run's network holds the last good weights.
        """
        run, started = self.run, time.monotonic()
        times: deque[float] = deque([started], maxlen=21)
        for epoch in range(run.epoch, self.plan.epochs):
            epoch_total, epoch_images = 0.0, 0
            steps = self.steps_of_epoch(epoch)
            for position, step in enumerate(steps):
                if run.step >= run.total:
                    break
                total = self.optimizer_step(step)
                epoch_total, epoch_images = epoch_total + total, epoch_images + sum(map(len, step))
                ended = position == len(steps) - 1
                if ended:
                    run.epoch += 1
                    run.epoch_losses.append(epoch_total / epoch_images)
                    for concept, losses in self._of_concepts.items():
                        run.concept_losses.setdefault(concept, []).append(sum(losses) / len(losses))
                    self._of_concepts = {}
                times.append(time.monotonic())
                self._tell(epoch, times[-1] - started, (times[-1] - times[0]) / (len(times) - 1))
                if self.after_step:
                    self.after_step(run, ended)
        return run

    def optimizer_step(self, step: list[Batch]) -> float:
        """Do one optimizer step and return the sum of its pictures' losses."""
        run = self.run
        total = 0.0
        for batch in step:
            total += self.micro_step(batch)
        self._clip(step)
        self._remember_good()
        run.rates.append(float(run.optimizer.param_groups[0]["lr"]))
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)
        run.scheduler.step()
        images = sum(map(len, step))
        run.step += 1
        run.images += images
        run.losses.append(total / images)
        self._recent.append(total / images)
        return total

    def _remember_good(self) -> None:
        """Copy the weights, which have just given finite losses, should the coming step spoil them.

        Of a schedule-free optimizer the other point (`z`) as well: the weights it would save lie between the two.
        """
        run = self.run
        live = [*run.network.parameters(), *(state["z"] for state in run.optimizer.state.values() if "z" in state)]
        if len(live) != len(self._good):
            self._good = [(tensor, tensor.detach().clone()) for tensor in live]
        for tensor, good in self._good:
            good.copy_(tensor.detach())
        self._good_step = run.step

    def micro_step(self, batch: Batch) -> float:
        """Forward and backward of one batch; returns the sum of its pictures' losses."""
        if self.sink.cancelled():
            raise Cancelled
        micro = self.prepare(batch)
        self.run.network.begin_micro_step(self.config.seed, self.run.micro_step)
        losses = self._losses(micro)
        total = losses.sum()
        value = float(total.detach())
        if not math.isfinite(value):
            self._diverged("loss", micro.names, losses.detach())
        for concept, loss in zip(micro.concepts, losses.tolist(), strict=True):
            self._of_concepts.setdefault(concept, []).append(loss)
        trained = total if micro.weights is None else (losses * micro.weights).sum()
        # Each picture counts the same: a step's loss is the sum over its pictures by what a step holds on average.
        (trained / self.plan.images_per_step).backward()
        self.run.micro_step += 1
        return value

    def prepare(self, batch: Batch, micro_step: int | None = None) -> MicroBatch:
        """Load a batch's latents and captions and draw its noise.

        Args:
            batch: Pictures of one bucket.
            micro_step: Its number in the run; the run's next one by default.
        """
        micro_step = self.run.micro_step if micro_step is None else micro_step
        pictures = [self.dataset.pictures[index] for index in batch.indices]
        device = self.model.device
        raw = [self.latents.load(i, flip) for i, flip in zip(batch.indices, batch.flips, strict=True)]
        x0 = self.model.latents_in(torch.cat(raw).to(device)).float()
        drawn = draw(tuple(x0.shape), self.table, self.timesteps, self.config.seed, micro_step)
        drawn = Draw(drawn.noise.to(device), drawn.sigma.to(device))
        conds = []
        for index, picture in enumerate(pictures):
            caption = self.plan.caption(batch.indices[index], micro_step, index)
            extra = {**size_conditions(picture, batch.flips[index]), "guidance": self.config.guidance}
            conditioning = self.captions.load(caption)
            conds.append(self.model.conditions(conditioning, drawn.noise[index : index + 1], extra))
        masks = [
            self._mask(index, flip, x0) for index, flip in zip(batch.indices, batch.flips, strict=True)
        ]
        mask = None
        if any(m is not None for m in masks):
            ones = torch.ones(1, *[1] * (x0.ndim - 3), *x0.shape[-2:])
            mask = torch.cat([ones if m is None else m for m in masks]).to(device)
        weights = None
        if any(picture.weight != 1 for picture in pictures):
            weights = torch.tensor([picture.weight for picture in pictures], device=device)
        by_model = [place for place, picture in enumerate(pictures) if picture.preserves_prior]
        names = tuple(picture.path.name for picture in pictures)
        concepts = tuple(self.dataset.concept_of(picture) for picture in pictures)
        return MicroBatch(x0, drawn, conds, mask, weights, by_model, names, concepts)

    def _mask(self, index: int, flipped: bool, x0: Tensor) -> Tensor | None:
        """Weight of each position of a picture's latent [1, 1, (1,) h, w]; None when all count the same."""
        picture = self.dataset.pictures[index]
        padding = padding_mask(picture.placement, x0) if picture.placement else None
        inside = self.latents.mask(index, flipped)
        if inside is None:
            return padding
        weights = picture.outside + (1 - picture.outside) * inside.view(1, *[1] * (x0.ndim - 3), *x0.shape[-2:])
        return weights if padding is None else weights * padding

    def _losses(self, micro: MicroBatch) -> Tensor:
        lower = torch.autocast(self.model.device.type, dtype=self.autocast) if self.autocast else nullcontext()
        with lower:
            target = self._target(micro)
            return prediction_losses(self.model, micro.x0, micro.drawn, micro.conds, micro.mask, target)

    def _target(self, micro: MicroBatch) -> Tensor:
        """Clean latents [B, C, …]: the pictures' own, or what the model makes of the noised ones without the LoRA.

        The latter is prior preservation by distillation: the sampling noise of a picture, which only says on average
        what the model would have painted, is gone from the target.
        """
        if not micro.by_model:
            return micro.x0
        sigma = micro.drawn.sigma[micro.by_model]
        conds = [micro.conds[place] for place in micro.by_model]
        with torch.no_grad(), self.run.network.switched_off():
            xt = self.model.noised(micro.x0[micro.by_model], micro.drawn.noise[micro.by_model], sigma)
            estimate = self.model.denoised(xt, sigma, conds).float()
        target = micro.x0.clone()
        target[micro.by_model] = estimate
        return target

    def _clip(self, step: list[Batch]) -> None:
        limit = self.config.max_grad_norm or math.inf
        norm = torch.nn.utils.clip_grad_norm_(list(self.run.network.parameters()), limit)
        if not torch.isfinite(norm):
            names = tuple(self.dataset.pictures[i].path.name for batch in step for i in batch.indices)
            self._diverged("gradient", names, None)

    def _diverged(self, what: str, names: tuple[str, ...], losses: Tensor | None) -> None:
        """Put the last good weights back, and the run to the step they are of, and say what happened."""
        run, failed = self.run, self.run.step + 1
        with torch.no_grad():
            for tensor, good in self._good:
                tensor.copy_(good)
        run.step = self._good_step
        del run.losses[run.step :], run.rates[run.step :]
        if losses is not None:
            names = tuple(n for n, bad in zip(names, ~torch.isfinite(losses), strict=True) if bad)
        cause = (
            "the first step already failed, so a picture, its caption or the model itself holds values that are "
            "not numbers; try precision fp32 and look at the pictures named"
            if failed == 1
            else f"the learning rate {self.config.learning_rate:g} is probably too high for {self.config.optimizer}"
            f"{self._with_lora_plus()}; try a tenth of it, or precision fp32"
        )
        raise Diverged(
            f"Training stopped: the {what} of step {failed} ({', '.join(names)}) is not a finite number. "
            f"Most likely {cause}."
        )

    def _with_lora_plus(self) -> str:
        return "" if self.config.lora_plus == 1 else f" with LoRA+ {self.config.lora_plus:g}"

    def _tell(self, epoch: int, seconds: float, per_step: float) -> None:
        run = self.run
        smoothed = sum(self._recent) / len(self._recent)
        self.sink.step(
            StepEvent(
                run.step, run.total, epoch + 1, self.plan.epochs, run.losses[-1], smoothed, run.rates[-1], seconds,
                per_step,
            )
        )


def size_conditions(picture: Any, flipped: bool) -> dict[str, int]:
    """The sizes a picture had before it was placed, for models that are told (Podell et al. 2023, section 2.2).

    Original size is the file's; the crop's corner is measured in the scaled picture; the target is the bucket. A
    mirrored picture is cropped from the other side.
    """
    place = picture.placement
    left, top = place.offset if place.fit == "crop" else (0, 0)
    if flipped and place.fit == "crop":
        left = place.scaled[0] - place.bucket[0] - left
    return {
        "width": picture.size[0],
        "height": picture.size[1],
        "crop_w": left,
        "crop_h": top,
        "target_width": place.bucket[0],
        "target_height": place.bucket[1],
    }


