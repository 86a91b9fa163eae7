"""The fingerprint of a run: a hash of everything that its weights and its files depend on, known before any work."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..cache.latents import wanted_latents
from ..cache.store import TensorCache
from ..config import TrainConfig
from ..data.dataset import Dataset, Picture
from ..errors import UserError
from ..host.content import Unidentified, clip_content, digest, model_content
from ..host.model import HostModel
from ..host.precision import compute_precision
from ..host.vae import HostVAE
from ..watch import Watch

log = logging.getLogger(__name__)

# Raise it whenever the engine gives other weights for the same inputs: another order of draws, another formula, another
# rounding, another default of a setting. Runs from before are then trained again.
ENGINE = 1

# Settings that change neither the weights nor what is saved.
_IRRELEVANT = (
    "name", "on_cancel", "warn_about_steps", "memory", "gradient_checkpointing", "train_without_captions",
    "if_run_before", "tensorboard",
)  # fmt: skip


def fingerprint(
    model: HostModel, clip: Any, vae: Any, dataset: Dataset, config: TrainConfig, cache: TensorCache,
    start_from: Mapping[str, Tensor] | None, watch: Watch,
) -> str:  # fmt: skip
    """Hash what a run depends on. Nothing is encoded, and paths do not count.

    Args:
        model: The model.
        clip: CLIP socket.
        vae: VAE socket.
        dataset: Bucketed.
        config: The run's settings.
        cache: The cache of latents.
        start_from: What is trained on; None for a fresh LoRA.
        watch: What the run is watched with. Held-out pictures count. Samples do not: other prompts are no reason to
            train for hours, and Compare Checkpoints paints them from the files.

    Returns:
        The hash; empty if something cannot be identified, such as a function that another node put on the model.
    """
    try:
        held_out = watch.held_out
        return digest(
            ENGINE, _settings(config, model), model.device.type, model_content(model.patcher), clip_content(clip),
            _pictures(dataset, vae, cache), dict(start_from) if start_from is not None else None,
            held_out and (held_out.every_steps, held_out.share),
            _pictures(held_out.dataset, vae, cache) if held_out and held_out.dataset else None,
        )  # fmt: skip
    except Unidentified as error:
        log.info("LoRA Workbench: this run cannot be found again, because %s has no content to compare", error)
    except UserError as error:  # encoding says it again, where it matters
        log.info("LoRA Workbench: this run cannot be found again: %s", error)
    except Exception:  # models of other packs can be anything, and training may still work with them
        log.exception("LoRA Workbench: this run cannot be found again, as its inputs cannot be compared")
    return ""


def _settings(config: TrainConfig, model: HostModel) -> dict[str, Any]:
    known = {name: value for name, value in (_plain(config) or {}).items() if name not in _IRRELEVANT}
    return known | {"precision": compute_precision(config.precision, model.device, model.computes_in)}


def _plain(settings: Any) -> dict[str, Any] | None:
    """The fields of a dataclass of plain values that differ from their default, so that a new one changes nothing."""
    if settings is None:
        return None
    fields = [(field, getattr(settings, field.name)) for field in dataclasses.fields(settings)]
    return {field.name: value for field, value in fields if value != field.default}


def _pictures(dataset: Dataset, vae: Any, cache: TensorCache) -> list[Any]:
    """Everything of a dataset that training reads, without its paths."""
    if not dataset.is_bucketed:
        raise Unidentified("a dataset without buckets")
    wanted = wanted_latents(dataset, HostVAE(vae), cache)
    dataset = wanted.dataset
    views: dict[int, list[Any]] = {}
    for view, key in wanted.keys.items():
        views.setdefault(view[0], []).append((view[1:], key, wanted.masks.get(view)))
    concepts: dict[str, int] = {}  # by number, as their names are those of folders
    return [
        (views[number], concepts.setdefault(dataset.concept_of(picture), len(concepts)), _picture(picture, dataset))
        for number, picture in enumerate(dataset.pictures)
    ]


def _picture(picture: Picture, dataset: Dataset) -> list[Any]:
    trigger, policy = dataset.trigger_of(picture), dataset.policy_of(picture)
    if "embedding:" in picture.caption + trigger:
        raise Unidentified("an embedding in a caption")
    return [
        picture.caption, trigger, _plain(policy), float(picture.repeats), picture.weight, picture.is_regularization,
        picture.preserves_prior, picture.outside if picture.mask else 1.0, picture.size, _plain(picture.placement),
        picture.flip, picture.random_crop, picture.variants, dataset.resolution_of(picture),
    ]  # fmt: skip
