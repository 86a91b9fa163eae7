"""What must hold before any work is done: inputs that fit each other, room in memory, a trial step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from . import advice
from .adapters.network import fresh_lora, refuse_nothing_to_train
from .cache.captions import CaptionStore
from .cache.latents import LatentStore
from .config import TrainConfig
from .data.batches import Length
from .data.dataset import Dataset
from .data.words import has_words
from .disk import safe_name
from .errors import UserError
from .events import Sink, counted
from .host.frozen import Differentiable
from .host.layers import refuse_untrainable
from .host.model import HostModel, comes_from_the_model, free_memory, is_out_of_memory
from .host.precision import NAMES, compute_precision
from .host.quantized import arises_in_a_layer
from .optimizers import optimizer_class
from .plan import Plan, is_trained_with_words, whole_captions
from .run.state import Run
from .step import Setup, training_step

log = logging.getLogger(__name__)


def check(model: HostModel, clip: Any, vae: Any, dataset: Dataset, config: TrainConfig) -> None:
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
    step = int(vae.spacial_compression_encode())
    for width, height in dataset.buckets():
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


def announce(
    dataset: Dataset, config: TrainConfig, sink: Sink, length: Callable[[str], Length] | None = None
) -> tuple[Plan, tuple[str, ...]]:
    """Say how long the run is and what is probably not meant.

    Args:
        dataset: Bucketed.
        config: The run's settings.
        sink: Receives the sentences.
        length: Counts a caption's tokens, for batches of more than one picture. None: all captions count as equal.

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


def make_room(model: HostModel, latents: LatentStore, config: TrainConfig) -> None:
    """Have the host load the model with room for a step of the largest bucket.

    Raises:
        UserError: The latents have other dimensions than the model takes.
    """
    sizes = [picture.placement.bucket if picture.placement else (0, 0) for picture in latents.dataset.pictures]
    largest = max(range(len(sizes)), key=lambda index: sizes[index][0] * sizes[index][1])
    shape = tuple(latents.load(largest, False).shape)
    if len(shape) - 2 != model.latent_dimensions:
        raise UserError(
            f"This VAE makes latents of {len(shape) - 2} dimensions and the MODEL takes {model.latent_dimensions}. "
            "Connect the VAE that belongs to the MODEL."
        )
    model.load((config.batch_size, *shape[1:]), config.gradient_checkpointing)


class Ready(NamedTuple):
    """What is ready to train: the model made differentiable, the parts of a step, the run at its beginning."""

    model: HostModel
    setup: Setup
    run: Run
    made: Differentiable

    @contextmanager
    def left(self) -> Iterator[None]:
        """Give the model back inside the block, between any two steps, and take it again after it.

        Inside, the host may sample with the model, move it or load another. Training goes on as if nothing had been.
        """
        self.made.leave()
        yield
        with torch.inference_mode():  # as the host runs nodes: what it loads stays as it makes it
            make_room(self.model, self.setup.latents, self.setup.plan.config)
        self.made.copies = min(self.made.copies, self.model.room_for_copies())
        with torch.inference_mode(False):
            self.made.enter()


@contextmanager
def prepared(
    model: HostModel, plan: Plan, latents: LatentStore, captions: CaptionStore, *, copies: bool = True
) -> Iterator[Ready]:
    """Make a loaded model trainable inside the block, with a fresh LoRA and after a trial step.

    Args:
        model: Loaded on its device (`make_room`).
        plan: The run's plan, with its settings.
        latents: Latents of the plan's dataset.
        captions: Every caption the plan asks for.
        copies: Whether weights in another dtype may be copied to the compute dtype, where memory allows.

    Raises:
        UserError: The inputs do not fit each other, the model cannot be trained, or an optimizer's package is missing.
    """
    config = plan.config
    # The host runs nodes in inference mode; what is made there cannot be trained.
    with torch.inference_mode(False), torch.enable_grad():
        precision = compute_precision(config.precision, model.device, model.computes_in)
        network = fresh_lora(
            model.targets(), rank=config.rank, alpha=config.effective_alpha, dropout=config.dropout,
            seed=config.seed, dtype=precision, device=model.device,
        )  # fmt: skip
        setup = Setup(model, latents, captions, plan, network, precision)
        run = Run.start(config, plan, network, is_scaled=precision == torch.float16)
        made = Differentiable(
            model.model, network, dtype=precision, device=model.device, checkpointing=config.gradient_checkpointing,
            copies=model.room_for_copies() if copies else 0,
        )  # fmt: skip
        with made.entered():
            rehearse(made, setup, model)
            log.info("LoRA Workbench: computes in %s on %s", NAMES[precision], model.device)
            yield Ready(model, setup, run, made)


def rehearse(made: Differentiable, setup: Setup, model: HostModel) -> None:
    """Run the largest batch forward and backward as a trial; the run stays at its beginning.

    What does not fit together, or not into memory, shows here, before anything is written.

    Raises:
        UserError: The CLIP belongs to another kind of model, or the model cannot be trained.
    """
    micro_step, batch = setup.plan.largest()

    def once() -> None:
        try:
            setup.network.flat.begin_step()
            # The first step makes the optimizer's two moments.
            moments = torch.empty(2, *setup.network.flat.master.shape, device=model.device)
            training_step(setup, batch, micro_step)
            del moments
        finally:
            setup.network.flat.begin_step()

    try:
        if not _fits(made, once):
            log.info("LoRA Workbench: no memory for copies of the weights; each is cast when it is used")
            made.leave()
            made.copies = 0
            free_memory()
            made.enter()
            made.rehearse(once)
    except (RuntimeError, KeyError, AttributeError, TypeError) as error:
        if not (looks_like_foreign_text(error) and comes_from_the_model(error)):
            raise
        width = setup.captions.load(setup.plan.captions()[0])[0][0].shape[-1]
        raise UserError(
            f"This CLIP does not go with this MODEL ({model.family}). Its text vectors are {width} wide, or a part is "
            f"missing ({error}). Connect the CLIP of the same checkpoint."
        ) from error


def _fits(made: Differentiable, once: Callable[[], None]) -> bool:
    """Try a step; False when copies of weights took the memory that it needs."""
    try:
        made.rehearse(once)
    except Exception as error:
        if not (made.copies and is_out_of_memory(error)):
            raise
        return False
    return True


def looks_like_foreign_text(error: Exception) -> bool:
    """Whether an error of a forward pass says that the text does not fit the model."""
    if arises_in_a_layer(error):
        return False
    if isinstance(error, (KeyError, AttributeError, TypeError)):
        return True  # a part of the conditioning that this model reads is not there
    text = str(error)
    return any(sign in text for sign in ("shapes cannot be multiplied", "size of tensor", "normalized_shape"))
