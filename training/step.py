"""One training step: forward, loss, backward.

The loss is the mean squared error of the network's own prediction (noise, v or velocity), in fp32, as in DDPM (Ho et
al. 2020), v-prediction (Salimans & Ho 2022), rectified flow (Esser et al. 2024), kohya and diffusers. The host gives
an estimate of the clean latents. Its error divided by its slope in the network's output is the error of the
prediction, so one formula serves every kind of model. Loss Options can count and weigh that error in another way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .adapters.adapter import WHOLE, Share
from .adapters.network import Network
from .cache.captions import CaptionStore
from .cache.latents import LatentStore, View
from .data.batches import Batch
from .data.dataset import Picture
from .draws import generator
from .late import sent
from .losses import huber_widths, level_weights, robust
from .noise import add_offset
from .noise_levels import NoiseLevels
from .objective import Denoiser, Draw, draw, mean_per_picture, padding_mask
from .plan import Plan
from .rung import Ladder, Rung


def training_step(setup: Setup, batch: Batch, micro_step: int, loss_scale: Tensor | None = None) -> BatchLosses:
    """Run one batch forward and backward; its gradients are added to those of the LoRA.

    Args:
        setup: What every step of the run is made of.
        batch: Pictures of one bucket.
        micro_step: Its number in the run, which decides every random draw.
        loss_scale: Keeps the gradients of fp16 in its range, or None.
    """
    model, plan, flat = setup.model, setup.plan, setup.network.flat
    whole = prepare(setup, batch, micro_step)
    found = []
    for micro in whole.parts(setup.ladder.rung.micro_batch):
        setup.network.begin_micro_step(plan.config.seed, micro_step, micro.share)
        target = clean_target(setup, micro)
        xt = model.noised(micro.x0, micro.drawn.seen, micro.drawn.sigma)
        estimate = model.denoised(xt, micro.drawn.sigma, conditions(setup, micro)).float()
        error = (estimate - target) / model.output_scale(micro.drawn.sigma, xt.ndim)
        squared = plan.config.loss == "L2"
        values = error.square() if squared else robust(plan.config.loss, error, micro.widths)
        losses = mean_per_picture(values, micro.mask)
        weighted = losses if micro.weights is None else losses * micro.weights
        # Each picture counts the same, also in a short batch: divided by the pictures that a step holds on average.
        mean = weighted.sum() / plan.images_per_step
        (mean if loss_scale is None else mean * loss_scale).backward()
        flat.add_up(loss_scale)
        found.append(losses.detach())
    return BatchLosses(found[0] if len(found) == 1 else torch.cat(found), whole.concepts)


@dataclass(frozen=True)
class BatchLosses:
    """The losses of one batch [B], on the device, and what each is counted for."""

    losses: Tensor
    concepts: tuple[str, ...]


@dataclass(frozen=True)
class Setup:
    """What every step of a run is made of. Only the LoRA's weights change.

    Attributes:
        model: Made differentiable by the caller.
        latents: Latents of the bucketed dataset.
        captions: Encoded captions; none where the model's text encoders are trained.
        plan: Order of the pictures, their captions, the settings.
        network: The LoRA on the model.
        precision: What the frozen model computes in.
        ladder: How a step fits into memory.
    """

    model: Denoiser
    latents: LatentStore
    captions: CaptionStore
    plan: Plan
    network: Network
    precision: torch.dtype = torch.float32
    ladder: Ladder = field(default_factory=lambda: Ladder([Rung()]))

    @cached_property
    def levels(self) -> NoiseLevels:
        """The noise levels of the model's schedule, on the CPU, and how they are drawn."""
        return NoiseLevels.of(self.model, self.plan.config.timesteps, self.plan.config)

    def conditioning(self, caption: str) -> Any:
        """A caption's conditioning, from the cache or from the text encoders that are trained."""
        if self.model.text is None:
            return self.captions.load(caption)
        self.network.begin_caption(caption)
        return self.model.text.encode(caption)


@dataclass(frozen=True)
class MicroBatch:
    """A batch with everything that was loaded and drawn for it.

    Attributes:
        x0: Clean latents [B, C, (T,) h, w] in the model's scale.
        drawn: Noise and noise levels.
        captions: Of each picture.
        extras: What else the model is given for each picture: sizes and guidance.
        mask: Weight of each latent position, or None.
        weights: Weight of each picture's loss [B], or None for 1.
        preserved: Places of the pictures that are trained towards the model's own prediction.
        names: File names, for messages.
        concepts: What each picture's loss is counted for.
        share: What part of a batch it is.
        widths: Where the loss turns from square to linear for each picture [B], or None.
    """

    x0: Tensor
    drawn: Draw
    captions: tuple[str, ...]
    extras: tuple[dict[str, Any], ...]
    mask: Tensor | None
    weights: Tensor | None
    preserved: list[int]
    names: tuple[str, ...]
    concepts: tuple[str, ...]
    share: Share = WHOLE
    widths: Tensor | None = None

    def parts(self, size: int) -> list[MicroBatch]:
        """Cut it into parts of at most so many pictures, each with what was drawn for it; 0 cuts nothing."""
        count = len(self.names)
        if not 0 < size < count:
            return [self]
        return [self._part(slice(at, min(at + size, count))) for at in range(0, count, size)]

    def _part(self, at: slice) -> MicroBatch:
        mask, weights, widths = (None if v is None else v[at] for v in (self.mask, self.weights, self.widths))
        preserved = [place - at.start for place in self.preserved if at.start <= place < at.stop]
        return replace(
            self, x0=self.x0[at], drawn=self.drawn.part(at), captions=self.captions[at], extras=self.extras[at],
            mask=mask, weights=weights, preserved=preserved, names=self.names[at], concepts=self.concepts[at],
            share=(at.start, at.stop - at.start, len(self.names)), widths=widths,
        )  # fmt: skip


def prepare(setup: Setup, batch: Batch, micro_step: int) -> MicroBatch:
    """Load a batch's latents and captions and draw its noise."""
    model, plan, device = setup.model, setup.plan, setup.model.device
    config, dataset = plan.config, plan.dataset
    pictures = [_as_cropped(setup, index, variant) for index, _, variant in batch.shown]
    raw = [_latent(setup, view, micro_step, place) for place, view in enumerate(batch.shown)]
    x0 = model.latents_in(sent(torch.cat(raw), device)).float()
    made = draw(tuple(x0.shape), setup.levels, model.patch_size, config.seed, micro_step)
    drawn = made.to(device)
    drawn = replace(drawn, noise=add_offset(drawn.noise, x0, config, config.seed, micro_step))
    captions = tuple(plan.caption(index, micro_step, place) for place, index in enumerate(batch.indices))
    sizes = [size_conditions(picture, flip) for picture, flip in zip(pictures, batch.flips, strict=True)]
    extras = tuple({**size, "guidance": config.guidance} for size in sizes)
    masks = [mask_of(setup.latents, picture, view, x0) for picture, view in zip(pictures, batch.shown, strict=True)]
    mask = None
    if any(m is not None for m in masks):
        ones = torch.ones(1, *[1] * (x0.ndim - 3), *x0.shape[-2:])
        mask = sent(torch.cat([ones if m is None else m for m in masks]), device)
    weights, widths = _weights_and_widths(setup, pictures, made)
    preserved = [place for place, picture in enumerate(pictures) if picture.preserves_prior]
    names = tuple(picture.path.name for picture in pictures)
    concepts = tuple(dataset.concept_of(picture) for picture in pictures)
    return MicroBatch(x0, drawn, captions, extras, mask, weights, preserved, names, concepts, widths=widths)


def _weights_and_widths(
    setup: Setup, pictures: Sequence[Picture], drawn: Draw
) -> tuple[Tensor | None, Tensor | None]:
    """The weight of each picture's loss, by picture and noise level, and `huber_widths`; from the CPU to the device."""
    config, device = setup.plan.config, setup.model.device
    weights = level_weights(config, drawn.sigma, setup.model.prediction)
    if any(picture.weight != 1 for picture in pictures):
        own = torch.tensor([picture.weight for picture in pictures])
        weights = own if weights is None else own * weights
    widths = None
    if drawn.time is not None:
        widths = huber_widths(config, drawn.sigma, drawn.time)
    return tuple(None if value is None else sent(value, device) for value in (weights, widths))  # type: ignore[return-value]


def conditions(setup: Setup, micro: MicroBatch, places: Sequence[int] | None = None) -> list[dict[str, Any]]:
    """The model's inputs for each picture, or for those at some places."""
    wanted = range(len(micro.names)) if places is None else places
    texts = {caption: setup.conditioning(caption) for caption in dict.fromkeys(micro.captions[at] for at in wanted)}
    noise = micro.drawn.noise
    return [setup.model.conditions(texts[micro.captions[at]], noise[at : at + 1], micro.extras[at]) for at in wanted]


def clean_target(setup: Setup, micro: MicroBatch) -> Tensor:
    """What the clean-image estimate is compared with [B, C, …]: each picture, or the model's own prediction of it.

    The latter is prior preservation by distillation. The target then lacks the sampling noise of a single picture,
    which says only on average what the model would have painted.

    With input perturbation the model sees more noise than it is asked for. The estimate that the asked-for noise makes
    then differs from the picture by what the extra noise adds to the input, times the estimate's slope in it. A
    preserved picture needs no such step: both predictions see the same.
    """
    target = micro.x0
    if micro.drawn.extra is not None:
        model, drawn = setup.model, micro.drawn
        plain, seen = (model.noised(target, noise, drawn.sigma) for noise in (drawn.noise, drawn.seen))
        target = target + (seen - plain) * model.input_scale(drawn.sigma, plain.ndim)
    if not micro.preserved:
        return target
    sigma = micro.drawn.sigma[micro.preserved]
    with torch.no_grad(), setup.network.switched_off():
        conds = conditions(setup, micro, micro.preserved)
        xt = setup.model.noised(micro.x0[micro.preserved], micro.drawn.seen[micro.preserved], sigma)
        estimate = setup.model.denoised(xt, sigma, conds).float()
    target = target.clone()
    target[micro.preserved] = estimate
    return target


def size_conditions(picture: Picture, flipped: bool) -> dict[str, int]:
    """The sizes of a picture for models that have them as inputs (Podell et al. 2023, section 2.2).

    Original size is the file's; the crop's corner is measured in the scaled picture; the target is the bucket. A
    mirrored picture is cropped from the other side.
    """
    place = picture.placement
    assert place is not None, "not bucketed"
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


def _as_cropped(setup: Setup, index: int, variant: int) -> Picture:
    """A picture with the placement of one of its variants."""
    picture, place = setup.plan.dataset.pictures[index], setup.latents.crops.get((index, variant))
    return picture if place is None else replace(picture, placement=place)


def _latent(setup: Setup, view: View, micro_step: int, place: int) -> Tensor:
    """One picture's latent [1, C, (T,) h, w], drawn from the VAE's distribution where it has one.

    kohya's trainer caches one draw; diffusers draws in each step.
    """
    config = setup.plan.config
    if config.latents == "mean":
        return setup.latents.load(*view)
    once = config.latents == "drawn once"
    source = generator(config.seed, "latent", *(view if once else (micro_step, place)))
    return setup.latents.draw(*view, source)


def mask_of(latents: LatentStore, picture: Picture, view: View, x0: Tensor) -> Tensor | None:
    """Weight of each position of a picture's latent [1, 1, (1,) h, w]; None when all weigh the same."""
    padding = padding_mask(picture.placement, x0) if picture.placement else None
    inside = latents.mask(*view)
    if inside is None:
        return padding
    weights = picture.outside + (1 - picture.outside) * inside.view(1, *[1] * (x0.ndim - 3), *x0.shape[-2:])
    return weights if padding is None else weights * padding
