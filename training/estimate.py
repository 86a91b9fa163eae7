"""What a run would take, before it: its steps, what is still to encode, its files, its memory and its time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .adapters.lora import Trained, saved_shapes
from .cache.captions import CaptionStore, caption_key
from .cache.latents import LatentStore, cache_folders, wanted_latents
from .cache.store import Overlay, TensorCache, header_of
from .config import MEMORY, TrainConfig
from .data.dataset import Dataset
from .disk import safetensors_bytes
from .encode import Asked, asked_captions, encode_captions
from .events import Cancelled, Sink, counted, lasted
from .fit import Fit
from .held_out import split
from .host import memory
from .host.keys import trained_names
from .host.model import HostModel
from .host.precision import NAMES, compute_precision
from .host.text import count_tokens
from .host.text_encoders import trained_text
from .host.vae import HostVAE, has_spread, latent_shape_of
from .ladder import in_gb, preset_bytes
from .measure import Measured, measured
from .plan import Plan, whole_captions
from .preflight import announce, check, latent_shape, trained_layers
from .settings import Settings, knob
from .watch import HeldOut

_CANDIDATES = 32  # captions whose tokens are counted to find the longest
_MIB = 2**20
META = torch.device("meta")


@dataclass(frozen=True)
class EstimateSettings(Settings):
    """How an estimate is made."""

    measure: bool = knob(
        False,
        "Trains a few steps to measure the time of one, then gives the model back and keeps nothing. Needs the time of "
        "loading the model and of about five steps.",
    )


@dataclass(frozen=True)
class Card:
    """What a run takes of one device.

    Attributes:
        name: The device or the card's size.
        budget: Bytes that the run may take there; None if that is not known.
        peak: Bytes that it takes at most, the model included.
        rung: How it fits, in words.
        fits: Whether it fits.
    """

    name: str
    budget: int | None
    peak: int
    rung: str
    fits: bool

    @property
    def how(self) -> str:
        """How it fits, or that it does not."""
        if self.fits:
            return self.rung
        return f"too small by {in_gb(self.peak - (self.budget or 0))}, even with {self.rung}"


@dataclass(frozen=True)
class Estimate:
    """What a run would take.

    Attributes:
        pictures: Files in the dataset.
        pictures_per_epoch: Pictures shown in an epoch, repeats included.
        steps_per_epoch: Optimizer steps of the first epoch.
        epochs: Epochs of the run, the last one begun counted.
        steps: Optimizer steps of the run.
        latents: Latents that the run reads, mirrored ones and variants included.
        latents_to_encode: Those that the cache lacks.
        captions: Different captions that the run reads.
        captions_to_encode: Those that the cache lacks.
        lora_bytes: Size of the LoRA file in fp16, as Save LoRA writes it, without its metadata.
        run_lora_bytes: Size of the LoRA file in the run's folder, in fp32, without its metadata.
        cache_bytes: Size of the run's latents, masks and captions in the cache once all are encoded. Captions that it
            lacks count like the longest.
        precision: What the run computes in.
        is_rough: Whether the memory is a rough figure, as the model's code cannot be counted.
        cards: This device first, then cards by size.
        measured: What was measured, if asked.
        hints: One sentence for each setting that is probably not meant.
    """

    pictures: int
    pictures_per_epoch: int
    steps_per_epoch: int
    epochs: int
    steps: int
    latents: int
    latents_to_encode: int
    captions: int
    captions_to_encode: int
    lora_bytes: int
    run_lora_bytes: int
    cache_bytes: int
    precision: str
    is_rough: bool
    cards: tuple[Card, ...]
    measured: Measured | None = None
    hints: tuple[str, ...] = ()

    @property
    def seconds(self) -> float | None:
        """Time of all steps; None if it was not measured."""
        return None if self.measured is None else self.steps * self.measured.seconds_per_step

    def numbers(self) -> list[tuple[str, str]]:
        """The table of the run: what it is, and its number in words."""
        rows = [
            ("pictures", f"{self.pictures:,}"),
            ("pictures per epoch, repeats included", f"{self.pictures_per_epoch:,}"),
            ("steps per epoch", f"{self.steps_per_epoch:,}"),
            ("epochs", f"{self.epochs:,}"),
            ("steps", f"{self.steps:,}"),
            ("latents to encode", _of(self.latents_to_encode, self.latents)),
            ("captions to encode", _of(self.captions_to_encode, self.captions)),
            ("LoRA file, fp16", _in_mb(self.lora_bytes)),
            ("LoRA in the run's folder, fp32", _in_mb(self.run_lora_bytes)),
            ("latents and captions on disk", _in_mb(self.cache_bytes)),
            ("computes in", self.precision),
        ]
        if self.measured and self.seconds is not None:
            rows += [
                ("time of a step", f"{self.measured.seconds_per_step:.2f} s"),
                ("time of all steps", lasted(self.seconds)),
            ]
            if self.measured.peak is not None:
                rows.append(("measured peak memory", in_gb(self.measured.peak)))
        return rows

    @property
    def notes(self) -> list[str]:
        """What to know about the numbers, a sentence each."""
        rough = "The memory is a rough figure: this model's code cannot be counted."
        return [*([rough] if self.is_rough else []), *self.hints]

    def text(self) -> str:
        """All of it in words, a line each."""
        lines = [f"{name}: {value}" for name, value in self.numbers()]
        cards = [f"{card.name}: {in_gb(card.peak)} ({card.how})" for card in self.cards]
        return "\n".join([*lines, "", "peak memory by card:", *cards, *(["", *self.notes] if self.notes else [])])

    def summary(self) -> str:
        """The run in a sentence."""
        here = self.cards[0]
        time = "" if self.seconds is None else f" in about {lasted(self.seconds)}"
        fits = "" if here.fits else ", which is more than there is"
        return f"{counted(self.steps, 'step')}{time}, about {in_gb(here.peak)}{fits}."

    def panel(self) -> dict[str, Any]:
        """The tables for the node."""
        cards = [
            {"name": card.name, "peak": in_gb(card.peak), "how": card.how, "fits": card.fits} for card in self.cards
        ]
        return {"numbers": [list(row) for row in self.numbers()], "cards": cards, "notes": self.notes}


def estimate(
    patcher: Any, clip: Any, vae: Any, dataset: Dataset, config: TrainConfig, *, cache_root: Path, sink: Sink,
    measure: bool = False, start_from: Mapping[str, Tensor] | None = None, held_out: HeldOut | None = None,
) -> Estimate:  # fmt: skip
    """Say what a run would take. Nothing is written, and the model is given back untouched.

    No picture and at most one caption is encoded, unless steps are measured.

    Args:
        patcher: MODEL socket.
        clip: CLIP socket.
        vae: VAE socket.
        dataset: A bucketed dataset.
        config: The run's settings.
        cache_root: Where latents and captions are kept between runs.
        sink: Receives the progress and is checked for a cancel.
        measure: Whether to train a few steps for their time.
        start_from: LORA_MODEL socket, as in training.
        held_out: Which pictures are measured instead of trained, as in training.

    Raises:
        Cancelled: The user pressed cancel.
        UserError: Something in the inputs does not fit, as in training.
    """
    model = HostModel(patcher)
    check(model, clip, vae, dataset, config, held_out)
    model.text = trained_text(clip, config.trained_encoders, model.device)
    left_out: list[str] = []
    dataset, _ = split(dataset, held_out, left_out.append)
    layers = trained_layers(model, config, start_from, clip, left_out.append)
    latent_cache, caption_cache = map(Overlay, cache_folders(cache_root))
    latents = wanted_latents(dataset, HostVAE(vae), latent_cache)
    plan, hints = announce(latents.dataset, config, sink, partial(count_tokens, clip), left_out)
    shaped = _Shaped(latents, vae)
    captions = plan.captions()
    no_latents = sum(key not in latent_cache for key in dict.fromkeys(latents.keys.values()))
    longest = [_longest(plan, clip)]
    asked = asked_captions(model, clip, captions)
    missing = _missing(asked, caption_cache)
    with torch.inference_mode():  # as the host runs nodes
        some = Asked(asked.encoder, longest if asked.captions else [])
        encoded = encode_captions(model, some, caption_cache, sink, is_part=True)
    caption_bytes = _caption_bytes(asked, longest[0], caption_cache)
    precision = compute_precision(config.precision, model.device, model.computes_in)
    fit = _fit(model, plan, shaped, encoded, precision, layers)
    cards = _cards(model, fit, sink)
    lora = _lora_shapes(model, layers)
    return Estimate(
        pictures=len(plan.dataset.pictures) - len(plan.dataset.further_views()),
        pictures_per_epoch=plan.dataset.images_per_epoch,
        steps_per_epoch=len(plan.steps(0)), epochs=plan.epochs, steps=plan.total,
        latents=len(set(latents.keys.values())), latents_to_encode=no_latents,
        captions=len(captions), captions_to_encode=len(missing),
        lora_bytes=safetensors_bytes(lora, "F16"), run_lora_bytes=safetensors_bytes(lora, "F32"),
        cache_bytes=shaped.bytes() + caption_bytes,
        precision=NAMES[precision], is_rough=fit.is_rough, cards=cards,
        measured=measured(model, clip, vae, plan, (latent_cache, caption_cache), sink, layers) if measure else None,
        hints=hints,
    )  # fmt: skip


def _missing(asked: Asked, cache: TensorCache) -> list[str]:
    """The captions that are still to encode."""
    return [text for text in asked.captions if caption_key(text, asked.encoder) not in cache]


def _caption_bytes(asked: Asked, longest: str, cache: TensorCache) -> int:
    """Bytes of encoded captions on disk; one that is not there counts like the longest."""
    keys = [caption_key(text, asked.encoder) for text in asked.captions]
    most = cache.size(caption_key(longest, asked.encoder))
    return sum(cache.size(key) or most for key in dict.fromkeys(keys))


class _Shaped:
    """The latents of a run by their shapes alone, in the place of a `LatentStore`.

    Args:
        latents: Their keys.
        vae: VAE socket.
    """

    def __init__(self, latents: LatentStore, vae: Any) -> None:
        self._latents, self._vae = latents, vae

    def shape(self, index: int) -> tuple[int, ...]:
        """Of one picture's latent."""
        placement = self._latents.dataset.pictures[index].placement
        assert placement is not None, "not bucketed"
        return latent_shape_of(self._vae, placement.bucket)

    def load(self, index: int, flipped: bool, variant: int = 0) -> Tensor:
        """One latent, without data."""
        return torch.empty(self.shape(index), device=META)

    def bytes(self) -> int:
        """Bytes of all latents and masks on disk, those counted that are not there yet."""
        cache = self._latents.cache
        parts = ("latent", "spread") if has_spread(self._vae) else ("latent",)
        wanted = {
            key: dict.fromkeys(parts, self.shape(index)) for (index, *_), key in self._latents.keys.items()
        }
        wanted |= {key: {"mask": self.shape(index)[-2:]} for (index, *_), key in self._latents.masks.items()}
        return sum(
            cache.size(key) or safetensors_bytes(shapes, "F32", header_of()) for key, shapes in wanted.items()
        )


def _longest(plan: Plan, clip: Any) -> str:
    """The caption with the most tokens of those that the largest batch can hold."""
    _, batch = plan.largest()
    pictures = plan.dataset.pictures
    whole = whole_captions(plan.dataset)
    indices: Sequence[int] = batch.indices
    if not plan.lengths:  # any picture of its bucket comes into such a batch
        indices = [n for n, one in enumerate(pictures) if one.placement and one.placement.bucket == batch.bucket]
    # Counting tokens takes about a millisecond a caption.
    found = sorted({whole[index] for index in indices}, key=lambda caption: (-len(caption), caption))[:_CANDIDATES]
    return max(found, key=lambda caption: sum(count_tokens(clip, caption)))


def _fit(
    model: HostModel, plan: Plan, latents: Any, captions: CaptionStore, precision: torch.dtype,
    layers: Sequence[Trained],
) -> Fit:  # fmt: skip
    largest = plan.largest()
    memory.make_way(model)  # as the run does, so that what is free is the same
    return Fit(model, plan, captions, largest, latent_shape(model, latents, largest[1]), precision, layers)


def _cards(model: HostModel, fit: Fit, sink: Sink) -> tuple[Card, ...]:
    """What the run takes here, and on cards of the sizes that the setting memory knows."""
    is_set = preset_bytes(fit.config.memory) is not None
    here = f"this device ({model.device}{f', memory {fit.config.memory}' if is_set else ''})"
    budget = fit.found_budget()
    asked: list[tuple[str, int | None, bool | None]] = [(here, budget, None)]
    asked += [(size, preset_bytes(size), True) for size in MEMORY if preset_bytes(size)]
    found: list[Card] = []
    with torch.inference_mode(False), torch.enable_grad():
        for name, most, is_apart in asked:
            if sink.cancelled():
                raise Cancelled
            sink.phase("estimating memory", len(found), len(asked))
            everything = is_apart is None and fit.config.memory == "plenty"
            choice = fit.choice(None if everything else most, is_apart)
            found.append(Card(name, most, choice.taken, choice.rung.name, choice.fits))
    sink.phase("estimating memory", len(asked), len(asked))
    return tuple(found)


def _lora_shapes(model: HostModel, layers: Sequence[Trained]) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors in the LoRA's file."""
    encoders = model.text.modules if model.text else None
    names = trained_names(model.patcher, encoders, [(layer.path, layer.part_of) for layer in layers])
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in layers:
        shapes |= saved_shapes(names[layer.path].kohya, layer)
    return shapes


def _of(part: int, whole: int) -> str:
    return f"{part:,}" if part == whole else f"{part:,} of {whole:,}"


def _in_mb(size: int) -> str:
    return f"{size / _MIB:.1f} MB"
