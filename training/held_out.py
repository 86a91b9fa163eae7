"""Pictures that are measured and not trained: their loss at fixed noise and fixed noise levels.

The loss of a training step follows its draws more than what is learned. On fixed inputs it does not (DVAR, Voronov et
al. 2023, arXiv:2302.04841). The base model's loss on the same inputs is the zero line.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from .cache.latents import LatentStore, PictureEncoder, store_latents
from .cache.store import TensorCache
from .captions.live import caption_for
from .data.dataset import Dataset, Picture
from .data.images import file_hash
from .data.split import hold_out, learned, shared
from .draws import generator
from .errors import UserError
from .events import Cancelled, Sink, counted
from .host.memory import free_memory, let_go
from .host.out_of_memory import is_out_of_memory
from .host.progress import is_host_interrupt
from .late import sent
from .noise_levels import latent_tokens
from .objective import mean_per_picture
from .run.state import Run
from .step import Setup, mask_of, size_conditions
from .watch import HeldOut

log = logging.getLogger(__name__)

LEVELS = 8  # noise levels at which each picture is measured
_NAMED = 3  # files in a hint


def split(
    dataset: Dataset, held_out: HeldOut | None, hint: Callable[[str], None]
) -> tuple[Dataset, tuple[Dataset, ...]]:
    """Take what is held out from what is trained.

    Args:
        dataset: Bucketed.
        held_out: What to hold out; None for nothing.
        hint: Receives a sentence for each thing that is probably not meant.

    Returns:
        What is trained, and the datasets that are measured.
    """
    if held_out is None:
        return dataset, ()
    parts = []
    if held_out.share:
        dataset, part = hold_out(dataset, held_out.share)
        parts.append(part)
        if not part.pictures:
            hint("No picture is held out, because no concept has two pictures. Add pictures, or set share to 0.")
    if held_out.dataset is not None:
        parts.append(learned(held_out.dataset))
        if names := shared(parts[-1], dataset):
            some = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
            verb = "is" if len(names) == 1 else "are"
            what = f"{counted(len(names), 'held-out picture')} {verb} trained too ({some})"
            hint(f"{what}. Remove them from one dataset.")
    return dataset, tuple(part for part in parts if part.pictures)


def held_captions(dataset: Dataset) -> list[str]:
    """What each picture is called when it is measured: its whole caption, always the same."""
    return [_caption(dataset, picture) for picture in dataset.pictures]


def _caption(dataset: Dataset, picture: Picture) -> str:
    if policy := dataset.policy_of(picture):
        fixed = replace(policy, shuffle=False, tag_dropout=0.0, caption_dropout=0.0, drop_every_epochs=0)
        picture = replace(picture, own_policy=fixed)
    return caption_for(picture, dataset, 0, 0, 0)


def store_held(parts: Sequence[Dataset], vae: PictureEncoder, cache: TensorCache, sink: Sink) -> list[LatentStore]:
    """Encode the latents of what is held out, as those of the training are.

    Raises:
        Cancelled: The user pressed cancel.
        UserError: No picture of a dataset could be encoded.
    """
    return [store_latents(part, vae, cache, sink) for part in parts]


class HeldOutLoss:
    """Measures the held-out pictures of a run; a `Watcher`.

    Each picture is measured at `LEVELS` noise levels that stand for the distribution in force. Its noise follows from
    its file alone, so runs can be compared. The loss is the mean squared error of the prediction, without weights,
    with the weights that files get.

    Args:
        setup: What a step is made of.
        stores: Latents of the held-out pictures.
        every_steps: How often they are measured; 0: after every epoch.
        record: Receives what a `held_out` line holds.
        sink: Shows the progress of the first measurement and is checked for a cancel.
        hint: Receives a sentence if they cannot be measured.
    """

    wish = ""

    def __init__(
        self, setup: Setup, stores: Sequence[LatentStore], every_steps: int,
        record: Callable[..., None], sink: Sink, hint: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._setup, self._every, self._record, self._sink, self._hint = setup, every_steps, record, sink, hint
        self._views = [
            (store, index, file_hash(picture.path))
            for store in stores
            for index, picture in enumerate(store.dataset.pictures)
        ]
        self._base: dict[str, list[float]] | None = None
        self._has_failed = False

    def is_due(self, run: Run, epoch_ended: bool) -> bool:
        """Before the first step, every so many steps or epochs, and after the last step."""
        if self._has_failed or not self._views:
            return False
        is_turn = run.step % self._every == 0 if self._every else epoch_ended
        return self._base is None or is_turn or run.step >= run.total

    def look(self, run: Run) -> None:
        """Measure. A failure ends the measurements, not the run.

        Raises:
            Cancelled: The user pressed cancel.
        """
        try:
            self._look(run)
            return
        except Exception as error:
            if isinstance(error, Cancelled) or is_host_interrupt(error):
                raise
            self._has_failed = True
            log.exception("LoRA Workbench: the held-out pictures could not be measured")
            why, is_full = str(error) or type(error).__name__, is_out_of_memory(error)
        advice = "Hold out smaller pictures." if is_full else "Look into ComfyUI's log."
        why = "out of memory" if is_full else why
        let_go(self._setup.model.modules())
        free_memory()  # outside of the error's block: its traceback holds tensors
        self._hint(f"Held-out pictures are not measured from step {run.step} on: {why.rstrip('.')}. {advice}")

    def _look(self, run: Run) -> None:
        network = self._setup.network
        if self._base is None:
            with network.switched_off():
                self._base = self._measured()
        try:
            with run.weights_to_keep():
                network.flat.refresh()
                found = self._measured()
        finally:
            network.flat.refresh()
        self._record(step=run.step, **compared(found, self._base))

    @torch.no_grad()
    def _measured(self) -> dict[str, list[float]]:
        """The loss of each picture, by concept.

        Raises:
            Cancelled: The user pressed cancel.
            UserError: A loss is not finite.
        """
        losses, concepts = [], []
        with self._setup.network.without_dropout():
            for number, (store, index, content) in enumerate(self._views):
                if self._sink.cancelled():
                    raise Cancelled
                if self._base is None:
                    self._sink.phase("measuring held-out pictures", number, len(self._views))
                losses.append(self._loss(store, index, content))
                concepts.append(store.dataset.concept_of(store.dataset.pictures[index]))
        if self._base is None:
            self._sink.phase("measuring held-out pictures", len(self._views), len(self._views))
        found: dict[str, list[float]] = {}
        for concept, loss in zip(concepts, torch.stack(losses).tolist(), strict=True):
            if not math.isfinite(loss):
                raise UserError("their loss is not a finite number")
            found.setdefault(concept, []).append(loss)
        return found

    def _loss(self, store: LatentStore, index: int, content: str) -> Tensor:
        """The mean loss of one picture over all levels, on the device."""
        setup, model = self._setup, self._setup.model
        picture = store.dataset.pictures[index]
        clean = model.latents_in(sent(store.load(index, False), model.device)).float()
        mask = mask_of(store, picture, (index, False, 0), clean)
        mask = None if mask is None else sent(mask, model.device)
        shape = tuple(clean.shape)
        sigma = setup.levels.strata(LEVELS, latent_tokens(shape, model.patch_size))
        noise = fixed_noise(content, shape)
        text = setup.conditioning(_caption(store.dataset, picture))
        extra = {**size_conditions(picture, False), "guidance": setup.plan.config.guidance}
        losses = []
        size = setup.ladder.rung.micro_batch or setup.plan.config.batch_size
        for at in range(0, LEVELS, size):
            seen, level = (sent(drawn[at : at + size], model.device) for drawn in (noise, sigma))
            x0 = clean.expand(len(level), *shape[1:])
            xt = model.noised(x0, seen, level)
            conds = [model.conditions(text, seen[n : n + 1], extra) for n in range(len(level))]
            error = (model.denoised(xt, level, conds).float() - x0) / model.output_scale(level, xt.ndim)
            losses.append(mean_per_picture(error.square(), mask))
        return torch.cat(losses).mean()


def fixed_noise(content: str, shape: tuple[int, ...]) -> Tensor:
    """The noise of one picture at each level, the same in every run.

    Args:
        content: Hash of its file, in hexadecimal digits.
        shape: Of its latent, [1, C, (T,) h, w].

    Returns:
        [LEVELS, C, (T,) h, w].
    """
    number = int(content[:15], 16)
    drawn = (torch.randn(shape, generator=generator(0, "held out", number, level)) for level in range(LEVELS))
    return torch.cat(list(drawn))


def compared(found: Mapping[str, Sequence[float]], base: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """What a `held_out` line holds: the mean loss and the base model's, of all pictures and by concept.

    Args:
        found: The loss of each picture, by concept.
        base: The loss of each picture with the base model, by concept.
    """

    def mean(losses: Mapping[str, Sequence[float]]) -> float:
        return fmean(loss for part in losses.values() for loss in part)

    concepts = {name: {"loss": fmean(losses), "base": fmean(base[name])} for name, losses in found.items()}
    return {"loss": mean(found), "base": mean(base), "concepts": concepts}
