"""One training run, from sockets to LORA_MODEL: check, encode, load, train, keep."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .advice import risen
from .between import Between, Watcher
from .cache.captions import CaptionStore
from .cache.latents import LatentStore, cache_folders, store_latents
from .config import TrainConfig
from .data.dataset import Dataset
from .encode import asked_captions, encode_captions
from .events import Cancelled, Sink, Stopped
from .held_out import HeldOutLoss, held_captions, split, store_held
from .host.model import HostModel
from .host.progress import host_interrupt, is_host_interrupt
from .host.text import count_tokens
from .host.text_encoders import trained_text
from .host.vae import HostVAE
from .loop import train
from .lora import LoraModel, RunSummary, name_of
from .plan import Plan
from .preflight import announce, check, prepared, trained_layers
from .ready import Ready
from .run.fingerprint import fingerprint
from .run.keeper import Keeper
from .run.reuse import reused
from .run.state import Run
from .run.under_way import UnderWay
from .samples import Samples
from .watch import UNWATCHED, Watch

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """What a run hands on: the LoRA and the story of the run."""

    lora: LoraModel
    summary: RunSummary


def train_lora(
    patcher: Any, clip: Any, vae: Any, dataset: Dataset, config: TrainConfig, *,
    root: Path, cache_root: Path, sink: Sink, model_file: Path | None = None,
    start_from: Mapping[str, Tensor] | None = None, watch: Watch = UNWATCHED,
) -> Result:  # fmt: skip
    """Train a LoRA on a loaded MODEL and give the model back untouched, or find a finished run with the same inputs.

    Args:
        patcher: MODEL socket.
        clip: CLIP socket.
        vae: VAE socket.
        dataset: A bucketed dataset.
        config: The run's settings.
        root: Folder in which the run's folder is made.
        cache_root: Where latents and captions are kept between runs.
        sink: Receives the progress and is checked for a cancel.
        model_file: The file that MODEL was loaded from, if it is known.
        start_from: LORA_MODEL socket: what is trained on; None for a fresh LoRA.
        watch: What the run is watched with.

    Raises:
        UserError: Something in the inputs does not fit; nothing was written.
        Diverged: The loss is no longer finite; the last good weights are in the run's folder.
    """
    started_at = time.time()
    model = HostModel(patcher)
    check(model, clip, vae, dataset, config, watch.held_out)
    inputs_hash = fingerprint(model, clip, vae, dataset, config, cache_folders(cache_root)[0], start_from, watch)
    if config.uses_run_before and (found := reused(root, inputs_hash, config, sink, watch.place)):
        return Result(*found)
    model.text = trained_text(clip, config.trained_encoders, model.device)
    left_out: list[str] = []
    dataset, parts = split(dataset, watch.held_out, left_out.append)
    layers = trained_layers(model, config, start_from, clip, left_out.append)
    plan, hints = announce(dataset, config, sink, partial(count_tokens, clip), left_out)
    plan, latents, captions, held = encode(model, clip, vae, plan, cache_root, sink, parts)
    with ExitStack() as until_ended:  # the run's record stays open while its files are written
        with prepared(model, plan, latents, captions, sink=sink, layers=layers) as ready:
            setup, encoded = ready.setup, (latents.encoded, captions.encoded)
            keeper = Keeper(
                model, plan, ready.run, setup.precision, setup.ladder, sink, encoded, started_at, hints,
                model_file, "" if start_from is None else name_of(start_from),
                None if clip.layer_idx is None else -clip.layer_idx, inputs_hash, watch,
            )  # fmt: skip
            under_way = until_ended.enter_context(keeper.opened(root))
            ended_by = _trained(keeper, ready, under_way, clip, vae, held)
        return _ended(keeper, ready.run, sink, ended_by)


def _ended(keeper: Keeper, run: Run, sink: Sink, ended_by: BaseException | None) -> Result:
    """Keep what was trained, as the way in which the run ended asks for.

    Args:
        keeper: Keeps it.
        run: The run; all its steps can be done if its last sample was cancelled.
        sink: Has the cancel.
        ended_by: What ended it before its end; None for nothing.

    Raises:
        BaseException: The host's cancel, if nothing is handed on.
    """
    is_stop = isinstance(ended_by, Stopped)
    if ended_by:
        sink.take_cancel()
        if run.step == 0 or (isinstance(ended_by, Stopped) and not ended_by.keeps):
            keeper.discard()
            raise host_interrupt()
    is_whole = not ended_by or run.step >= run.total
    result = _kept(keeper, run, "finished" if is_whole else "stopped" if is_stop else "cancelled")
    if ended_by and not is_stop and not keeper.plan.config.keeps_on_cancel:
        raise host_interrupt()
    return result


def watchers_of(
    keeper: Keeper, ready: Ready, under_way: UnderWay, clip: Any, vae: Any, held: Sequence[LatentStore]
) -> list[Watcher]:
    """What looks at the run between two steps."""
    found: list[Watcher] = [Samples(keeper, ready, clip, vae, keeper.watch, under_way)]
    if held and (options := keeper.watch.held_out):
        record, sink = keeper.measured, keeper.history
        found.append(HeldOutLoss(ready.setup, held, options.every_steps, record, sink, keeper.hint))
    return found


def _trained(
    keeper: Keeper, ready: Ready, under_way: UnderWay, clip: Any, vae: Any, held: Sequence[LatentStore]
) -> BaseException | None:
    """Train to the end, or until the user ends it; return what ended it early.

    Raises:
        BaseException: What else ended it. What was trained is kept.
    """
    run, sink = ready.run, keeper.history

    def smaller() -> None:
        keeper.hint(f"Out of memory at step {run.step + 1}. It goes on with {ready.step_down()}.")

    try:
        watchers = watchers_of(keeper, ready, under_way, clip, vae, held)
        between = Between(keeper, ready, sink, under_way, watchers)
        between.begin(run)
        train(ready.setup, run, sink, between.after_step, smaller)
    except BaseException as error:
        if is_cancel(error):
            return error.with_traceback(None)  # which holds what the step held
        keeper.rescue(error)
        raise
    return None


def _kept(keeper: Keeper, run: Run, outcome: str) -> Result:
    """Keep the LoRA, and say if its loss rose."""
    with torch.inference_mode(False):
        if hint := risen(keeper.plan.config, run.losses):
            keeper.hint(hint)
        return Result(*keeper.finish(outcome))


def encode(
    model: HostModel, clip: Any, vae: Any, plan: Plan, cache_root: Path, sink: Sink, held: Sequence[Dataset] = ()
) -> tuple[Plan, LatentStore, CaptionStore, list[LatentStore]]:
    """Encode the pictures and captions that the run will ask for and the cache does not hold.

    Of a model whose text encoders are trained, the other encoders of the CLIP get what they make of each caption.

    Returns:
        The plan without the pictures that could not be encoded; the latents; the captions, those of `held` included;
        the latents of `held`.
    """
    dataset = plan.dataset
    latent_cache, caption_cache = cache_folders(cache_root)
    with stops_the_queue(sink):
        latents = store_latents(dataset, HostVAE(vae), latent_cache, sink)
        if latents.dataset != dataset:
            plan = Plan(latents.dataset, plan.config, plan.lengths)
        held_latents = store_held(held, HostVAE(vae), latent_cache, sink)
        more = [caption for store in held_latents for caption in held_captions(store.dataset)]
        asked = asked_captions(model, clip, [*plan.captions(), *more])
        captions = encode_captions(model, asked, caption_cache, sink)
    for sentence in latents.dataset.skipped[len(dataset.skipped) :]:
        log.warning("LoRA Workbench: left out: %s", sentence)
    log.info("LoRA Workbench: encoded %d new pictures and %d new captions", latents.encoded, captions.encoded)
    return plan, latents, captions, held_latents


def is_cancel(error: BaseException) -> bool:
    """Whether an exception says that the user pressed cancel, here or in the host's own code."""
    return isinstance(error, Cancelled) or is_host_interrupt(error)


@contextmanager
def stops_the_queue(sink: Sink) -> Iterator[None]:
    """Let a cancel inside the block stop ComfyUI's queue: nothing is trained yet, so there is nothing to hand on."""
    try:
        yield
    except BaseException as error:
        if is_cancel(error):
            sink.take_cancel()
            raise host_interrupt() from error
        raise
