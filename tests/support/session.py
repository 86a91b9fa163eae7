"""A whole run in this process: MODEL, CLIP and VAE of the small SD1.5 checkpoint, and a few photos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from .photos import write_photos

AGAIN = {"if_run_before": "train again"}  # a test that trains twice must not compare a run with itself


def loaded(checkpoint: Path) -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE of a checkpoint, loaded as a server does."""
    import comfy.model_management
    import comfy.sd

    with torch.inference_mode():
        parts = comfy.sd.load_checkpoint_guess_config(str(checkpoint))[:3]
        comfy.model_management.load_models_gpu([parts[0]])  # the first load is the host's own change
    return parts  # type: ignore[no-any-return]


def photos(folder: Path, most: int = 100, resolution: int = 128) -> Any:
    """A bucketed dataset of photos with a trigger.

    Args:
        folder: Where the photos are written; one that has some already is read.
        most: How many photos at most.
        resolution: Of the buckets.
    """
    from lora_workbench.training.data.buckets import BucketConfig, assign_buckets
    from lora_workbench.training.data.scan import scan_folder

    if not folder.exists():
        folder.mkdir(parents=True)
        for photo in write_photos(folder, longest=2 * resolution)[most:]:
            photo.unlink()
    return assign_buckets(scan_folder(folder, trigger="zorp"), BucketConfig(resolution=resolution, step=32))


def train(parts: Any, dataset: Any, folder: Path, sink: Any = None, *, more: Any = None, **settings: Any) -> Any:
    """Train, as the node does. A run before it with the same inputs is not used unless the settings say so.

    Args:
        parts: MODEL, CLIP and VAE.
        dataset: Bucketed.
        folder: Its `runs` and `cache` hold what is made.
        sink: Receives the story of the run.
        more: Further arguments of `train_lora`.
        settings: Fields of TrainConfig.
    """
    from lora_workbench.training.config import TrainConfig
    from lora_workbench.training.events import SilentSink
    from lora_workbench.training.train import train_lora

    usual = {"name": "run", "steps": 2, "rank": 4, "learning_rate": 1e-2, **AGAIN}
    config = TrainConfig(**{**usual, **settings})
    with torch.inference_mode():
        return train_lora(
            *parts, dataset, config, root=folder / "runs", cache_root=folder / "cache", sink=sink or SilentSink(),
            **(more or {}),
        )  # fmt: skip
