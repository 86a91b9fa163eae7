"""What a LoRA file says about itself: kohya's `ss_*` keys, ModelSpec's `modelspec.*` and our own.

The keys and the form of their values are those of kohya's trainer, which galleries, Automatic1111 and LoRA managers
read. Only what is true of the run is written; settings that we lack are left out.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ..data.buckets import aspect_error
from ..data.dataset import REPEATS, Dataset, Picture
from ..lora import RunSummary
from .architectures import ArchitectureFacts, architecture_facts

SOFTWARE = "LoRA Workbench"


@dataclass(frozen=True)
class ModelFacts:
    """What a file says of the model that its LoRA was trained on.

    Attributes:
        family: Class name of the host's `model.model_config`, such as `SDXL`.
        v_prediction: Whether the model predicts v.
        is_flow: Whether it is a rectified flow.
        flow_shift: Shift of a flow's timesteps; None when there is none.
        takes_guidance: Whether guidance is one of its inputs.
    """

    family: str
    v_prediction: bool = False
    is_flow: bool = False
    flow_shift: float | None = None
    takes_guidance: bool = False


@dataclass(frozen=True)
class Session:
    """What tells one run from another.

    Attributes:
        id: A random number, to tell two runs of one name apart.
        started_at: Start, in seconds since 1970.
        finished_at: End, in seconds since 1970.
        batches_per_epoch: Batches in the first epoch.
    """

    id: int
    started_at: float
    finished_at: float
    batches_per_epoch: int


def build_metadata(
    settings: Mapping[str, Any], summary: RunSummary, dataset: Dataset, model: ModelFacts, session: Session
) -> dict[str, str]:
    """Describe a run as the metadata of its LoRA file.

    Args:
        settings: The settings in force by metadata key, as `config.kohya_settings` gives them.
        summary: How the run went.
        dataset: What it was trained on.
        model: What it was trained on top of.
        session: Which run it was.

    Returns:
        Key → value as safetensors wants them, every value a string: None is `None`, a bool `True` or `False`,
        lists and objects are JSON. Hashes of the tensors are added when the file is written.
    """
    known = architecture_facts(model.family, v_prediction=model.v_prediction)
    entries = {
        **settings,
        **_run_entries(settings, summary, known, model, session),
        **_dataset_entries(settings, dataset),
        **_modelspec_entries(settings, dataset, known, model, session),
        **_own_entries(summary),
    }
    if not model.takes_guidance:
        entries.pop("ss_guidance_scale", None)
    return {key: as_text(value) for key, value in entries.items()}


def as_text(value: Any) -> str:
    """Write a value as kohya does: JSON for dicts and lists, Python's own text for the rest."""
    if isinstance(value, (dict, list)):
        return json.dumps(value)
    return str(value)


def _run_entries(
    settings: Mapping[str, Any], summary: RunSummary, known: ArchitectureFacts, model: ModelFacts, session: Session
) -> dict[str, Any]:
    entries: dict[str, Any] = {
        "ss_session_id": session.id,
        "ss_training_started_at": session.started_at,
        "ss_training_finished_at": session.finished_at,
        "ss_base_model_version": known.base_version,
        "ss_v2": known.is_v2,
        "ss_network_module": known.network_module,
        "ss_steps": summary.steps,
        "ss_epoch": summary.epochs,
        "ss_num_batches_per_epoch": session.batches_per_epoch,
        "ss_full_fp16": False,
        "ss_cache_latents": True,
        "ss_loss_type": "l2",
    }
    if model.is_flow and settings["lora_workbench.timesteps"] == "logit-normal":
        # In kohya's words: logit-normal, then shifted. The schedule that is drawn from is shifted already.
        entries["ss_timestep_sampling"] = "shift"
    if model.flow_shift is not None:
        entries["ss_discrete_flow_shift"] = model.flow_shift
    return entries


def _dataset_entries(settings: Mapping[str, Any], dataset: Dataset) -> dict[str, Any]:
    learned = dataset.with_pictures(tuple(picture for picture in dataset.pictures if not picture.is_regularization))
    regularization = dataset.with_pictures(tuple(p for p in dataset.pictures if p.is_regularization))
    folders, regularization_folders = _folders(learned), _folders(regularization)
    # Of the pictures to learn alone: galleries read the trigger from it.
    tags = {name: _tag_counts(pictures) for name, pictures in folders.items()}
    shared: dict[str, Any] = {
        "batch_size_per_device": settings["ss_batch_size_per_device"],
        "num_train_images": learned.images_per_epoch,
        "num_reg_images": regularization.images_per_epoch,
        "enable_bucket": dataset.is_bucketed,
    }
    if dataset.is_bucketed:
        sides = [side for size in dataset.buckets() for side in size]
        shared |= {
            "resolution": [dataset.resolution, dataset.resolution],
            "min_bucket_reso": min(sides, default=0),
            "max_bucket_reso": max(sides, default=0),
            "bucket_info": _bucket_info(dataset),
        }
    policies = {dataset.policy_of(picture) for picture in dataset.pictures}
    policy = policies.pop() if len(policies) == 1 else None
    pictures_as_seen = {
        "color_aug": False,
        "flip_aug": any(picture.flip for picture in dataset.pictures),
        "random_crop": False,
        "shuffle_caption": bool(policy and policy.shuffle),
        "keep_tokens": policy.keep_tokens if policy and policy.shuffle else 0,
    }
    subsets = [
        {
            "img_count": len(pictures),
            "num_repeats": pictures[0].repeats,
            **pictures_as_seen,
            "image_dir": name,
            "class_tokens": pictures[0].class_word or None,
            "is_reg": is_reg,
        }
        for is_reg, found in ((False, folders), (True, regularization_folders))
        for name, pictures in found.items()
    ]
    entries = {f"ss_{key}": value for key, value in {**shared, **pictures_as_seen}.items()}
    if dataset.is_bucketed:
        # In this one place kohya writes the text of a tuple.
        entries["ss_resolution"] = str((dataset.resolution, dataset.resolution))
    return entries | {
        "ss_num_validation_images": 0,
        "ss_caption_dropout_rate": policy.caption_dropout if policy else 0.0,
        "ss_caption_tag_dropout_rate": policy.tag_dropout if policy else 0.0,
        "ss_total_batch_size": settings["ss_batch_size_per_device"] * settings["ss_gradient_accumulation_steps"],
        "ss_prior_loss_weight": regularization.pictures[0].weight if regularization.pictures else 1.0,
        "ss_reg_dataset_dirs": _repeats_and_counts(regularization_folders),
        "ss_dataset_dirs": _repeats_and_counts(folders),
        "ss_tag_frequency": tags,
        "ss_datasets": [{"is_dreambooth": True, **shared, "tag_frequency": tags, "subsets": subsets}],
    }


def _folders(dataset: Dataset) -> dict[str, list[Picture]]:
    """Pictures by the folder kohya would have had them in, its repeats in front of its name."""
    found: dict[str, list[Picture]] = {}
    for concept, pictures in dataset.concepts().items():
        name = concept or dataset.name
        has_repeats = REPEATS.fullmatch(name.rpartition("/")[2])
        for picture in pictures:
            key = name if has_repeats else f"{picture.repeats:g}_{name}"
            found.setdefault(key, []).append(picture)
    return found


def _repeats_and_counts(folders: dict[str, list[Picture]]) -> dict[str, Any]:
    return {
        name: {"n_repeats": pictures[0].repeats, "img_count": len(pictures)} for name, pictures in folders.items()
    }


def _tag_counts(pictures: list[Picture]) -> dict[str, int]:
    """How many times each comma-separated part of the captions occurs, repeats not counted."""
    tags = (tag.strip().lower() for picture in pictures for tag in re.split("[,\n]", picture.caption))
    return dict(Counter(tag for tag in tags if tag))


def _bucket_info(dataset: Dataset) -> dict[str, Any]:
    """Buckets with their pictures (repeats counted), and how far their shapes are from the pictures' own."""
    buckets = {
        str(index): {"resolution": list(size), "count": round(sum(picture.repeats for picture in pictures))}
        for index, (size, pictures) in enumerate(dataset.buckets().items())
    }
    return {"buckets": buckets, "mean_img_ar_error": aspect_error(dataset)}


def _modelspec_entries(
    settings: Mapping[str, Any], dataset: Dataset, known: ArchitectureFacts, model: ModelFacts, session: Session
) -> dict[str, Any]:
    side = dataset.resolution or known.resolution
    entries: dict[str, Any] = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{known.architecture}/lora",
        "modelspec.implementation": known.implementation,
        "modelspec.title": settings["ss_output_name"],
        "modelspec.resolution": f"{side}x{side}",
        "modelspec.date": datetime.fromtimestamp(int(session.finished_at)).isoformat(),
    }
    if known.predicts_noise_or_v:
        entries["modelspec.prediction_type"] = "v" if model.v_prediction else "epsilon"
    triggers = dict.fromkeys(dataset.trigger_of(picture) for picture in dataset.pictures)
    triggers.pop("", None)
    if triggers:
        entries["modelspec.trigger_phrase"] = ", ".join(triggers)
    return entries


def _own_entries(summary: RunSummary) -> dict[str, Any]:
    entries: dict[str, Any] = {"lora_workbench.software": SOFTWARE}
    if summary.losses:
        entries["lora_workbench.final_loss"] = summary.losses[-1]
        entries["lora_workbench.mean_loss"] = sum(summary.losses) / len(summary.losses)
    if summary.epoch_losses:
        entries["lora_workbench.epoch_losses"] = list(summary.epoch_losses)
    if len(summary.concept_losses) > 1:
        last = {name: losses[-1] for name, losses in summary.concept_losses.items()}
        entries["lora_workbench.concept_losses"] = last
    return entries
