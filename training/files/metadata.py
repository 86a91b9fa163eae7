"""What a LoRA file says about itself: kohya's `ss_*` keys, ModelSpec's `modelspec.*`, and our own.

The keys and the shapes of their values are those of kohya's trainer, which is what galleries, Automatic1111
and LoRA managers read. Only what is true of the run is written; settings we do not have are left out.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from ..data.buckets import aspect_error
from ..data.dataset import REPEATS, Dataset, Picture


@dataclass(frozen=True)
class ArchitectureFacts:
    """How published files name a base model.

    Attributes:
        base_version: `ss_base_model_version`.
        architecture: ModelSpec's id of the base model; a LoRA's own is this and `/lora`.
        implementation: Where the model's reference code is, or `diffusers`.
        resolution: Side in pixels of the square the base model was made for.
        network_module: kohya's module that reads such a LoRA.
        is_v2: Whether it is one of Stable Diffusion 2, which `ss_v2` tells apart.
        predicts_noise_or_v: Whether ModelSpec wants its prediction type told; models of flow have none.
    """

    base_version: str
    architecture: str
    implementation: str
    resolution: int = 1024
    network_module: str = "networks.lora"
    is_v2: bool = False
    predicts_noise_or_v: bool = False


_STABILITY = "https://github.com/Stability-AI/generative-models"
_SD1 = ArchitectureFacts("sd_v1", "stable-diffusion-v1", "diffusers", 512, predicts_noise_or_v=True)
_SD2 = ArchitectureFacts(
    "sd_v2", "stable-diffusion-v2-512", "diffusers", 512, is_v2=True, predicts_noise_or_v=True
)
_SDXL = ArchitectureFacts(
    "sdxl_base_v1-0", "stable-diffusion-xl-v1-base", _STABILITY, predicts_noise_or_v=True
)
_FLUX = ArchitectureFacts(
    "flux1", "flux-1-dev", "https://github.com/black-forest-labs/flux", network_module="networks.lora_flux"
)
_LUMINA = "https://github.com/Alpha-VLLM/Lumina-Image-2.0"
_CHROMA = replace(_FLUX, base_version="chroma", architecture="chroma",
                  implementation="https://huggingface.co/lodestones/Chroma")

# By the host's name of the model's config class. The names on the right are those of kohya's sd-scripts and
# musubi-tuner where they have one, of the model's own publisher otherwise.
_PUBLISHED = {
    "SD15": _SD1,
    "SD15_instructpix2pix": _SD1,
    "SD20": _SD2,
    "SD21UnclipL": _SD2,
    "SD21UnclipH": _SD2,
    "SDXL": _SDXL,
    "SDXL_instructpix2pix": _SDXL,
    "SSD1B": _SDXL,
    "Segmind_Vega": _SDXL,
    "KOALA_700M": _SDXL,
    "KOALA_1B": _SDXL,
    "SDXLRefiner": replace(_SDXL, base_version="sdxl_refiner_v1-0",
                           architecture="stable-diffusion-xl-v1-refiner"),
    "SD3": ArchitectureFacts("sd3", "stable-diffusion-3", "diffusers", network_module="networks.lora_sd3"),
    "Flux": _FLUX,
    "FluxInpaint": _FLUX,
    "FluxSchnell": replace(_FLUX, architecture="flux-1-schnell"),
    "Flux2": ArchitectureFacts("flux2", "flux-2-dev", "https://github.com/black-forest-labs/flux2"),
    "Chroma": _CHROMA,
    "ChromaRadiance": replace(_CHROMA, base_version="chroma_radiance", architecture="chroma-radiance"),
    "Lumina2": ArchitectureFacts("lumina2", "lumina-2", _LUMINA, network_module="networks.lora_lumina"),
    "ZImage": ArchitectureFacts("zimage", "z-image", "https://github.com/Tongyi-MAI/Z-Image"),
    "QwenImage": ArchitectureFacts("qwen_image", "Qwen-Image", "https://github.com/QwenLM/Qwen-Image"),
    "HunyuanImage21": ArchitectureFacts(
        "hunyuan-image-2.1", "hunyuan-image-2.1", "https://github.com/Tencent-Hunyuan/HunyuanImage-2.1", 2048,
        "networks.lora_hunyuan_image",
    ),
}


def architecture_facts(config_class: str, *, v_prediction: bool = False) -> ArchitectureFacts:
    """Look up how published files name a base model.

    Args:
        config_class: Class name of the host's `model.model_config`, such as `SDXL`.
        v_prediction: Whether the model predicts v; tells SD2's 768 from its 512 model.

    Returns:
        The published names, or for a model we know none of, names made of the class's own.
    """
    facts = _PUBLISHED.get(config_class)
    if facts is None:
        name = config_class.lower()
        return ArchitectureFacts(name, name, "https://github.com/comfyanonymous/ComfyUI")
    if v_prediction and facts.base_version in ("sd_v1", "sd_v2"):
        facts = replace(facts, base_version=f"{facts.base_version}_v")
        if facts.is_v2:
            facts = replace(facts, architecture="stable-diffusion-v2-768-v", resolution=768)
    return facts


@dataclass(frozen=True)
class RunFacts:
    """What one run was: its settings as they took effect, its model, and how it went.

    Attributes:
        output_name: Name of the LoRA, without folder and suffix.
        session_id: Random number of the run, to tell two of one name apart.
        started_at: Start, in seconds since 1970.
        finished_at: End, in seconds since 1970.
        model_class: Class name of the host's `model.model_config`.
        v_prediction: Whether the model predicts v.
        rank: Rank of every layer's LoRA.
        alpha: Alpha, never 0.
        dropout: Dropout on the LoRA's inner values, 0 to 1.
        learning_rate: Highest learning rate of the denoiser's LoRA.
        lora_plus: Rate of `up` over that of `down`.
        optimizer: Class and arguments, such as `torch.optim.AdamW(weight_decay=0.01)`.
        scheduler: Name of the learning rate schedule.
        warmup_steps: Optimizer steps in which the rate rises.
        max_steps: Optimizer steps that were asked for.
        steps: Optimizer steps that were done.
        epochs: Epochs that were asked for.
        epochs_done: Epochs that were finished.
        batches_per_epoch: Batches in one epoch, if known.
        batch_size: Pictures in one batch.
        gradient_accumulation: Batches in one optimizer step.
        max_grad_norm: Length gradients are cut to, 0 when they are not.
        seed: Seed of every random draw.
        mixed_precision: `no`, `bf16` or `fp16`: what the frozen model computed in.
        gradient_checkpointing: Whether blocks were computed twice.
        timestep_sampling: How a flow model's timesteps were drawn, in kohya's words; None where kohya has none.
        timesteps: How they were drawn, in ours.
        flow_shift: Shift of a flow model's timesteps; None when there is none.
        guidance: Guidance told to the model; None for models that take none.
        losses: Mean loss of each optimizer step.
        epoch_losses: Mean loss of each finished epoch.
        concept_losses: Mean loss of each concept in the last finished epoch.
        software: Name and version of what trained it.
    """

    output_name: str
    session_id: int
    started_at: float
    finished_at: float
    model_class: str
    v_prediction: bool = False
    rank: int = 16
    alpha: float = 16.0
    dropout: float = 0.0
    learning_rate: float = 1e-4
    lora_plus: float = 1.0
    optimizer: str = "torch.optim.AdamW()"
    scheduler: str = "constant"
    warmup_steps: int = 0
    max_steps: int = 0
    steps: int = 0
    epochs: int = 1
    epochs_done: int = 0
    batches_per_epoch: int | None = None
    batch_size: int = 1
    gradient_accumulation: int = 1
    max_grad_norm: float = 1.0
    seed: int = 0
    mixed_precision: str = "no"
    gradient_checkpointing: bool = False
    timestep_sampling: str | None = None
    timesteps: str | None = None
    flow_shift: float | None = None
    guidance: float | None = None
    losses: tuple[float, ...] = ()
    epoch_losses: tuple[float, ...] = ()
    concept_losses: dict[str, float] = field(default_factory=dict)
    software: str = "LoRA Workbench"


def build_metadata(facts: RunFacts, dataset: Dataset) -> dict[str, str]:
    """Write down a run as the metadata of its LoRA file.

    Args:
        facts: The run.
        dataset: What it was trained on.

    Returns:
        Key → value as safetensors wants them, every value a string: None is `None`, a bool `True` or `False`,
        lists and objects are JSON. Hashes of the tensors are added when the file is written.
    """
    known = architecture_facts(facts.model_class, v_prediction=facts.v_prediction)
    entries = {
        **_run_entries(facts, known),
        **_dataset_entries(facts, dataset),
        **_modelspec_entries(facts, known, dataset),
        **_own_entries(facts),
    }
    return {key: as_text(value) for key, value in entries.items()}


def as_text(value: Any) -> str:
    """Write a value as kohya does: JSON for dicts and lists, Python's own text for the rest."""
    if isinstance(value, (dict, list)):
        return json.dumps(value)
    return str(value)


def _run_entries(facts: RunFacts, known: ArchitectureFacts) -> dict[str, Any]:
    entries: dict[str, Any] = {
        "ss_output_name": facts.output_name,
        "ss_session_id": facts.session_id,
        "ss_training_started_at": facts.started_at,
        "ss_training_finished_at": facts.finished_at,
        "ss_base_model_version": known.base_version,
        "ss_v2": known.is_v2,
        "ss_network_module": known.network_module,
        "ss_network_dim": facts.rank,
        "ss_network_alpha": facts.alpha,
        "ss_network_dropout": facts.dropout or None,
        "ss_network_args": {} if facts.lora_plus == 1 else {"loraplus_lr_ratio": f"{facts.lora_plus:g}"},
        "ss_learning_rate": facts.learning_rate,
        "ss_unet_lr": facts.learning_rate,
        "ss_text_encoder_lr": None,
        "ss_optimizer": facts.optimizer,
        "ss_lr_scheduler": facts.scheduler,
        "ss_lr_warmup_steps": facts.warmup_steps,
        "ss_max_train_steps": facts.max_steps,
        "ss_steps": facts.steps,
        "ss_num_epochs": facts.epochs,
        "ss_epoch": facts.epochs_done,
        "ss_gradient_accumulation_steps": facts.gradient_accumulation,
        "ss_gradient_checkpointing": facts.gradient_checkpointing,
        "ss_max_grad_norm": facts.max_grad_norm,
        "ss_mixed_precision": facts.mixed_precision,
        "ss_full_fp16": False,
        "ss_cache_latents": True,
        "ss_seed": facts.seed,
        "ss_loss_type": "l2",
    }
    optional = {
        "ss_num_batches_per_epoch": facts.batches_per_epoch,
        "ss_timestep_sampling": facts.timestep_sampling,
        "ss_discrete_flow_shift": facts.flow_shift,
        "ss_guidance_scale": facts.guidance,
    }
    return entries | {key: value for key, value in optional.items() if value is not None}


def _dataset_entries(facts: RunFacts, dataset: Dataset) -> dict[str, Any]:
    learned = dataset.with_pictures(tuple(picture for picture in dataset.pictures if not picture.is_regularization))
    prior = dataset.with_pictures(tuple(picture for picture in dataset.pictures if picture.is_regularization))
    folders, prior_folders = _folders(learned), _folders(prior)
    # Of what is learned alone: galleries read the trigger from it.
    tags = {name: _tag_counts(pictures) for name, pictures in folders.items()}
    shared: dict[str, Any] = {
        "batch_size_per_device": facts.batch_size,
        "num_train_images": learned.images_per_epoch,
        "num_reg_images": prior.images_per_epoch,
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
        for is_reg, found in ((False, folders), (True, prior_folders))
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
        "ss_total_batch_size": facts.batch_size * facts.gradient_accumulation,
        "ss_prior_loss_weight": prior.pictures[0].weight if prior.pictures else 1.0,
        "ss_reg_dataset_dirs": _repeats_and_counts(prior_folders),
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


def _modelspec_entries(facts: RunFacts, known: ArchitectureFacts, dataset: Dataset) -> dict[str, Any]:
    side = dataset.resolution or known.resolution
    entries: dict[str, Any] = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{known.architecture}/lora",
        "modelspec.implementation": known.implementation,
        "modelspec.title": facts.output_name,
        "modelspec.resolution": f"{side}x{side}",
        "modelspec.date": datetime.fromtimestamp(int(facts.finished_at)).isoformat(),
    }
    if known.predicts_noise_or_v:
        entries["modelspec.prediction_type"] = "v" if facts.v_prediction else "epsilon"
    triggers = dict.fromkeys(dataset.trigger_of(picture) for picture in dataset.pictures)
    triggers.pop("", None)
    if triggers:
        entries["modelspec.trigger_phrase"] = ", ".join(triggers)
    return entries


def _own_entries(facts: RunFacts) -> dict[str, Any]:
    entries: dict[str, Any] = {"lora_workbench.software": facts.software}
    if facts.timesteps:
        entries["lora_workbench.timesteps"] = facts.timesteps
    if facts.losses:
        entries["lora_workbench.final_loss"] = facts.losses[-1]
        entries["lora_workbench.mean_loss"] = sum(facts.losses) / len(facts.losses)
    if facts.epoch_losses:
        entries["lora_workbench.epoch_losses"] = list(facts.epoch_losses)
    if len(facts.concept_losses) > 1:
        entries["lora_workbench.concept_losses"] = facts.concept_losses
    return entries
