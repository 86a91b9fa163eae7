"""What a LoRA file says about itself: kohya's `ss_*` keys, ModelSpec's `modelspec.*` and our own.

The keys and the form of their values are those of kohya's trainer, which galleries, Automatic1111 and LoRA managers
read. Only what is true of the run is written; settings that we lack are left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from ..data.buckets import aspect_error
from ..data.dataset import REPEATS, Dataset, Picture
from ..data.words import is_json, split_tags
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
        file_name: Name of the file it was loaded from; empty when that is unknown.
        file_hash: kohya's short hash of that file; empty when that is unknown.
        zero_terminal_snr: Whether the schedule of a model of noise or v ends in noise alone.
        clip_skip: From which layer of the CLIP the text comes, counted from the end; None where it was not set.
    """

    family: str
    v_prediction: bool = False
    is_flow: bool = False
    flow_shift: float | None = None
    takes_guidance: bool = False
    file_name: str = ""
    file_hash: str = ""
    zero_terminal_snr: bool = False
    clip_skip: int | None = None


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
    if summary.held_out:
        entries.pop("ss_num_validation_images")  # how many they were is not known here
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
        "ss_v_parameterization": model.v_prediction,
        "ss_zero_terminal_snr": model.zero_terminal_snr,
        "ss_clip_skip": model.clip_skip,
        **(_flow_entries(settings, model) if model.is_flow else {}),
    }
    if model.file_name:
        entries["ss_sd_model_name"] = model.file_name
    if model.file_hash:
        entries["ss_sd_model_hash"] = model.file_hash
    return entries


def _flow_entries(settings: Mapping[str, Any], model: ModelFacts) -> dict[str, Any]:
    """How a flow's timesteps were drawn, in kohya's words."""

    def own(name: str, usual: Any) -> Any:
        return settings.get(f"lora_workbench.{name}", usual)

    entries: dict[str, Any] = {}
    by_size = own("resolution_shift", False)
    shift = own("shift", model.flow_shift)
    if shift is not None and not by_size:
        entries["ss_discrete_flow_shift"] = shift
    how, mean, spread = settings["lora_workbench.timesteps"], own("timestep_mean", 0.0), own("timestep_spread", 1.0)
    if how == "logit-normal" and not mean:
        # Logit-normal, then shifted. The schedule that is drawn from is shifted already.
        entries |= {"ss_timestep_sampling": "flux_shift" if by_size else "shift", "ss_sigmoid_scale": spread}
    elif how == "logit-normal" and not by_size:
        # There kohya counts from the noise, so the mean has the other sign.
        scheme = {"ss_weighting_scheme": "logit_normal", "ss_logit_mean": -mean, "ss_logit_std": spread}
        entries |= {"ss_timestep_sampling": "sigma", **scheme}
    elif how == "mode" and not by_size:
        scheme = {"ss_weighting_scheme": "mode", "ss_mode_scale": own("mode_scale", 1.29)}
        entries |= {"ss_timestep_sampling": "sigma", **scheme}
    return entries


def _dataset_entries(settings: Mapping[str, Any], dataset: Dataset) -> dict[str, Any]:
    parts = _by_resolution(dataset)
    folders = [folder for part in parts for folder in _folders(part)]
    policies = {dataset.policy_of(picture) for picture in dataset.pictures}
    policy = policies.pop() if len(policies) == 1 else None
    whole = {**_amounts(settings, dataset), **_as_seen(dataset, dataset.pictures)}
    entries = {f"ss_{key}": value for key, value in whole.items()}
    if dataset.is_bucketed:
        # In this one place kohya writes the text of a tuple, and nothing for several resolutions. Readers take the two
        # numbers before the second comma, so the first resolution comes first in the form that they know.
        entries["ss_resolution"] = ", ".join(str((side, side)) for side in dataset.resolutions)
    return entries | {
        "ss_num_validation_images": 0,
        "ss_caption_dropout_rate": policy.caption_dropout if policy else 0.0,
        "ss_caption_dropout_every_n_epochs": policy.drop_every_epochs if policy else 0,
        "ss_caption_tag_dropout_rate": policy.tag_dropout if policy else 0.0,
        "ss_total_batch_size": settings["ss_batch_size_per_device"] * settings["ss_gradient_accumulation_steps"],
        "ss_prior_loss_weight": next((p.weight for p in dataset.pictures if p.is_regularization), 1.0),
        "ss_reg_dataset_dirs": _repeats_and_counts(folder for folder in folders if folder.is_reg),
        "ss_dataset_dirs": _repeats_and_counts(folder for folder in folders if not folder.is_reg),
        "ss_tag_frequency": _tag_frequency(dataset),
        "ss_datasets": [_part_entry(settings, part) for part in parts],
    }


def _by_resolution(dataset: Dataset) -> list[Dataset]:
    """The dataset in parts of one resolution each: kohya's trainer takes them as one dataset each."""
    found: dict[int, list[Picture]] = {}
    for picture in dataset.pictures:
        found.setdefault(dataset.resolution_of(picture), []).append(picture)
    return [
        replace(dataset, pictures=tuple(pictures), resolution=resolution) for resolution, pictures in found.items()
    ]


def _amounts(settings: Mapping[str, Any], dataset: Dataset) -> dict[str, Any]:
    """Counts and buckets, which are written of the whole and of each resolution."""
    learned = _learned(dataset)
    regularization = dataset.with_pictures(picture for picture in dataset.pictures if picture.is_regularization)
    amounts: dict[str, Any] = {
        "batch_size_per_device": settings["ss_batch_size_per_device"],
        "num_train_images": learned.images_per_epoch,
        "num_reg_images": regularization.images_per_epoch,
        "enable_bucket": dataset.is_bucketed,
    }
    if dataset.is_bucketed:
        sides = [side for size in dataset.buckets() for side in size]
        amounts |= {
            "min_bucket_reso": min(sides, default=0),
            "max_bucket_reso": max(sides, default=0),
            "bucket_info": _bucket_info(dataset),
        }
    return amounts


def _as_seen(dataset: Dataset, pictures: Sequence[Picture]) -> dict[str, Any]:
    """How pictures and captions are varied."""
    policies = {dataset.policy_of(picture) for picture in pictures}
    policy = policies.pop() if len(policies) == 1 else None
    return {
        "color_aug": any(picture.color_aug for picture in pictures),
        "flip_aug": any(picture.flip for picture in pictures),
        "random_crop": any(picture.random_crop for picture in pictures),
        "shuffle_caption": bool(policy and policy.shuffle),
        "keep_tokens": policy.keep_tokens if policy and policy.shuffle else 0,
    }


def _part_entry(settings: Mapping[str, Any], part: Dataset) -> dict[str, Any]:
    """One entry of `ss_datasets`: the pictures of one resolution."""
    return {
        "is_dreambooth": True,
        **_amounts(settings, part),
        **({"resolution": [part.resolution, part.resolution]} if part.is_bucketed else {}),
        # Of the pictures to learn alone: galleries read the trigger from it.
        "tag_frequency": _tag_frequency(part),
        "subsets": [
            {
                "img_count": len(folder.pictures),
                "num_repeats": folder.repeats,
                **_as_seen(part, folder.pictures),
                "image_dir": folder.name,
                "class_tokens": folder.pictures[0].class_word or None,
                "is_reg": folder.is_reg,
            }
            for folder in _folders(part)
        ],
    }


@dataclass(frozen=True)
class _Folder:
    """Pictures of one folder with equal repeats: a subset, in kohya's words."""

    name: str
    repeats: float
    is_reg: bool
    pictures: list[Picture]


def _folders(dataset: Dataset) -> list[_Folder]:
    """The folders kohya would have had the pictures in, the ones to learn first."""
    found: dict[tuple[bool, str, float], list[Picture]] = {}
    for concept, pictures in dataset.concepts().items():
        for picture in pictures:
            key = (picture.is_regularization, _folder_name(dataset, concept, picture), picture.repeats)
            found.setdefault(key, []).append(picture)
    folders = [_Folder(name, repeats, is_reg, pictures) for (is_reg, name, repeats), pictures in found.items()]
    return sorted(folders, key=lambda folder: folder.is_reg)


def _folder_name(dataset: Dataset, concept: str, picture: Picture) -> str:
    """The folder's name with its repeats in front."""
    name = concept or dataset.name
    return name if REPEATS.fullmatch(name.rpartition("/")[2]) else f"{picture.repeats:g}_{name}"


def _repeats_and_counts(folders: Iterable[_Folder]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for folder in folders:
        name, number = folder.name, 2
        while name in found:  # at another resolution; named as kohya does
            name, number = f"{folder.name} ({number})", number + 1
        found[name] = {"n_repeats": folder.repeats, "img_count": len(folder.pictures)}
    return found


def _learned(dataset: Dataset) -> Dataset:
    return dataset.with_pictures(picture for picture in dataset.pictures if not picture.is_regularization)


def _tag_frequency(dataset: Dataset) -> dict[str, dict[str, int]]:
    """How often each comma-separated part of the captions occurs, by folder.

    Repeats are not counted, and JSON has no tags. A file at several resolutions counts once, as in kohya's trainer.
    """
    found: dict[str, dict[str, int]] = {}
    learned = _learned(dataset)
    again = learned.further_views()
    for number, picture in enumerate(learned.pictures):
        if number in again or is_json(picture.caption):
            continue
        counts = found.setdefault(_folder_name(dataset, picture.concept, picture), {})
        for tag in split_tags(picture.caption.lower().replace("\n", ",")):
            counts[tag] = counts.get(tag, 0) + 1
    return found


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
    # ModelSpec has room for one: the largest.
    side = max(_learned(dataset).resolutions, default=known.resolution)
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
    if summary.held_out:
        measured = summary.held_out[-1]  # a checkpoint can be some steps younger
        for name in ("loss", "base", "step"):
            entries[f"lora_workbench.held_out_{name}"] = measured[name]
    return entries
