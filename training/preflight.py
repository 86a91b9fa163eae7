"""What must hold before any work is done: inputs that fit each other, room in memory, a trial step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from . import advice
from .adapters.lora import Trained
from .adapters.network import layers_to_train, make_network, refuse_nothing_to_train
from .cache.captions import CaptionStore
from .cache.latents import LatentStore
from .config import TrainConfig
from .data.batches import Batch, Length
from .data.dataset import Dataset
from .data.words import has_words
from .disk import safe_name
from .errors import UserError
from .events import SilentSink, Sink, counted
from .fit import Fit
from .host.existing import started_from
from .host.frozen import Differentiable
from .host.layers import refuse_untrainable
from .host.memory import frozen_text_bytes, kept_away, let_go, make_way
from .host.model import HostModel, comes_from_the_model
from .host.precision import NAMES, compute_precision
from .host.quantized import arises_in_a_layer
from .ladder import GIB, in_gb
from .objective import refuse_unfit
from .optimizers import optimizer_class
from .plan import Plan, is_trained_with_words, whole_captions
from .ready import Ready
from .rung import Rung
from .step import Setup
from .watch import HeldOut

log = logging.getLogger(__name__)


def check(
    model: HostModel, clip: Any, vae: Any, dataset: Dataset, config: TrainConfig, held_out: HeldOut | None = None
) -> None:
    """Refuse what cannot work, before any work is done.

    Raises:
        UserError: Says which input does not fit, and what to connect or set instead.
    """
    safe_name(config.name)
    optimizer_class(config.optimizer)
    if not dataset.pictures:
        raise UserError("The dataset has no pictures. Choose a folder with pictures in Load Dataset.")
    if not dataset.is_bucketed:
        raise UserError("The dataset has no buckets yet. Put Bucket Images between it and LoRA Trainer.")
    learned, silent = _learned_and_silent(dataset)
    if learned == silent and learned and not config.train_without_captions:
        raise UserError(_no_captions(dataset))
    for name, socket in (("CLIP", clip), ("VAE", vae)):
        if socket is None:
            raise UserError(f"The {name} input is empty: its loader has none. Connect one that fits the MODEL.")
    refuse_untrainable(model.model.diffusion_model)
    refuse_nothing_to_train(model.targets())
    refuse_unfit(model, config)
    step = int(vae.spacial_compression_encode())
    buckets = set(dataset.buckets())
    if held_out and held_out.dataset is not None:
        refuse_unmeasurable(held_out.dataset)
        buckets |= set(held_out.dataset.buckets())
    for width, height in sorted(buckets):
        if width % step or height % step:
            raise UserError(
                f"The bucket {width}×{height} is not a multiple of {step} pixels, which this VAE needs. Set step in "
                f"Bucket Images to a multiple of {step}."
            )
    channels, wanted = int(vae.latent_channels), model.latent_channels
    if channels != wanted:
        raise UserError(
            f"This VAE makes latents of {channels} channels and the MODEL takes {wanted}. Connect the VAE that belongs "
            "to the MODEL."
        )


def refuse_unmeasurable(dataset: Dataset) -> None:
    """Refuse a dataset that cannot be measured.

    Raises:
        UserError: It has no buckets.
    """
    if not dataset.is_bucketed:
        raise UserError(
            "The dataset of Held-out Pictures has no buckets yet. Put Bucket Images between it and Held-out Pictures."
        )


def announce(
    dataset: Dataset, config: TrainConfig, sink: Sink, length: Callable[[str], Length] | None = None,
    more: Sequence[str] = (),
) -> tuple[Plan, tuple[str, ...]]:  # fmt: skip
    """Say how long the run is and what is probably not meant.

    Args:
        dataset: Bucketed.
        config: The run's settings.
        sink: Receives the sentences.
        length: Counts a caption's tokens, for batches of more than one picture. None: all captions count as equal.
        more: Sentences on what else is probably not meant.

    Returns:
        The plan, and one sentence for each thing that is probably not meant. They stay in view.
    """
    lengths = {}
    if length and config.batch_size > 1:
        lengths = {caption: length(caption) for caption in dict.fromkeys(whole_captions(dataset))}
    plan = Plan(dataset, config, lengths)
    extent = advice.run_length(config, plan.total, plan.epochs, dataset.images_per_epoch)
    sink.tell(extent)
    log.info("LoRA Workbench: %s", extent)
    hints = advice.hints(config, plan.total, plan.epochs, plan.finished_epochs, plan.images_per_step)
    learned, silent = _learned_and_silent(dataset)
    if silent and learned != silent and not config.train_without_captions:
        some = ", ".join(silent[:3]) + (f" and {len(silent) - 3} more" if len(silent) > 3 else "")
        verb = "has" if len(silent) == 1 else "have"
        hints += (f"{len(silent)} of {counted(len(learned), 'picture')} {verb} no caption ({some}). Caption them.",)
    hints += tuple(more)
    for hint in hints:
        sink.hint(hint)
        log.warning("LoRA Workbench: %s", hint)
    return plan, hints


def _learned_and_silent(dataset: Dataset) -> tuple[list[str], list[str]]:
    """Names of the pictures to learn, and of those among them that are trained without a word."""
    again = dataset.further_views()
    learned = [p for number, p in enumerate(dataset.pictures) if number not in again and not p.is_regularization]
    silent = [picture for picture in learned if not is_trained_with_words(picture, dataset)]
    return [picture.path.name for picture in learned], [picture.path.name for picture in silent]


def _no_captions(dataset: Dataset) -> str:
    """Say why no picture to learn has a caption, and what to do."""
    learned = [picture for picture in dataset.pictures if not picture.is_regularization]
    triggers = sorted({dataset.trigger_of(picture) for picture in learned} - {""})
    what = "No picture to learn has a caption, so the LoRA would be learned for every prompt."
    if any(has_words(picture.caption) for picture in learned):
        return f"{what} Lower tag_dropout in Live Captions, or turn on train_without_captions."
    if triggers:
        return f"{what} Put the trigger {triggers[0]!r} into the captions, or turn on train_without_captions."
    return f"{what} Write a trigger in Load Dataset or caption the pictures, or turn on train_without_captions."


def latent_shape(model: HostModel, latents: LatentStore, batch: Batch) -> tuple[int, ...]:
    """Shape of the latent of a batch's first picture [1, C, (T,) h, w].

    Raises:
        UserError: The latents have other dimensions than the model takes.
    """
    shape = tuple(latents.load(batch.indices[0], False).shape)
    if len(shape) - 2 != model.latent_dimensions:
        raise UserError(
            f"This VAE makes latents of {len(shape) - 2} dimensions and the MODEL takes {model.latent_dimensions}. "
            "Connect the VAE that belongs to the MODEL."
        )
    return shape


def trained_layers(
    model: HostModel, config: TrainConfig, start_from: Mapping[str, Tensor] | None = None, clip: Any = None,
    hint: Callable[[str], None] = log.warning,
) -> list[Trained]:  # fmt: skip
    """The layers that a run trains, with their ranks and what they start with.

    Args:
        model: The model.
        config: The run's settings.
        start_from: A LORA_MODEL to train on; None for a fresh one.
        clip: CLIP socket.
        hint: Receives a sentence for each part of `start_from` that the run does without.

    Raises:
        UserError: There is nothing to train, or `start_from` cannot be trained on.
    """
    layers = layers_to_train(model.targets(), config.rank, config.effective_alpha)
    text = model.text.targets() if model.text else {}
    layers += [
        Trained(path, module, config.rank, config.effective_alpha, kind) for path, (kind, module) in text.items()
    ]
    return layers if start_from is None else started_from(start_from, layers, model.patcher, clip, hint)


def idle_text(model: HostModel) -> str:
    """A sentence on text encoders that take memory without being trained; empty where they are small."""
    size = frozen_text_bytes(model)
    if size < GIB:
        return ""
    assert model.text is not None
    names = " and ".join(model.text.frozen)
    return f"{names} is not trained but stays loaded ({in_gb(size)}), as ComfyUI loads a CLIP whole. Load it in fp8."


@contextmanager
def prepared(
    model: HostModel, plan: Plan, latents: LatentStore, captions: CaptionStore, *, only: Rung | None = None,
    sink: Sink | None = None, layers: Sequence[Trained] | None = None,
) -> Iterator[Ready]:  # fmt: skip
    """Make a model trainable inside the block, with its LoRA and after a trial step.

    The host loads the model with room for the largest batch. What does not fit together, or not into memory, shows
    here, before anything is written.

    Args:
        model: The model, loaded or not.
        plan: The run's plan, with its settings.
        latents: Latents of the plan's dataset.
        captions: Every caption the plan asks for.
        only: The one way to fit into memory; None chooses one by what is free.
        sink: Receives what was chosen and why.
        layers: What is trained; None for a fresh pair on each target.

    Raises:
        UserError: The inputs do not fit each other or into memory, the model cannot be trained, or an optimizer's
            package is missing.
    """
    config, sink = plan.config, sink or SilentSink()
    # The host runs nodes in inference mode; what is made there cannot be trained.
    with torch.inference_mode(False), torch.enable_grad():
        precision = compute_precision(config.precision, model.device, model.computes_in)
        largest = plan.largest()
        layers = trained_layers(model, config) if layers is None else layers
        for name in make_way(model):
            sink.hint(f"{name} stays in the memory of {model.device}, so that training has less of it.")
        if idle := idle_text(model):
            sink.hint(idle)
        fit = Fit(model, plan, captions, largest, latent_shape(model, latents, largest[1]), precision, layers, only)
        told = fit.choose()
        network = make_network(
            layers, dropout=config.dropout, seed=config.seed, dtype=precision, device=model.device
        )
        setup = Setup(model, latents, captions, plan, network, precision, fit.ladder)
        made = Differentiable(
            model.model, network, dtype=precision, device=model.device, rung=fit.ladder.rung,
            encoders=model.text.trained if model.text else None, recomputes_text=not config.dropout,
        )  # fmt: skip
        ready, chosen = Ready(model, setup, made, fit), fit.ladder.rung
        try:
            _begin(ready)
            if fit.ladder.rung != chosen:
                told = f"Memory: {fit.ladder.rung.name}. {chosen.name.capitalize()} ran out of memory."
            for sentence in (told, f"Computes in {NAMES[precision]}."):
                sink.tell(sentence)
                log.info("LoRA Workbench: %s", sentence)
            if (away := kept_away(model)) and not fit.ladder.rung.streams:
                sink.hint(f"ComfyUI keeps {in_gb(away)} of the model in system memory, so steps are slower.")
            yield ready
        finally:
            made.leave()
            let_go(model.modules())


def _begin(ready: Ready) -> None:
    """Try a step.

    Raises:
        UserError: The CLIP belongs to another kind of model, or the model cannot be trained.
    """
    try:
        ready.begin()
    except (RuntimeError, KeyError, AttributeError, TypeError) as error:
        if not (looks_like_foreign_text(error) and comes_from_the_model(error)):
            raise
        setup = ready.setup
        with torch.no_grad():
            width = setup.conditioning(setup.plan.captions()[0])[0][0].shape[-1]
        raise UserError(
            f"This CLIP does not go with this MODEL ({ready.model.family}). Its text vectors are {width} wide, or a "
            f"part is missing ({error}). Connect the CLIP of the same checkpoint."
        ) from error


def looks_like_foreign_text(error: Exception) -> bool:
    """Whether an error of a forward pass says that the text does not fit the model."""
    if arises_in_a_layer(error):
        return False
    if isinstance(error, (KeyError, AttributeError, TypeError)):
        return True  # a part of the conditioning that this model reads is not there
    text = str(error)
    return any(sign in text for sign in ("shapes cannot be multiplied", "size of tensor", "normalized_shape"))
