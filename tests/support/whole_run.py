"""A whole run in this process, CLIP and VAE included: photos, the small SD1.5 checkpoint, `train_lora`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from .photos import write_photos


def loaded(checkpoint: Path) -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE of a checkpoint, loaded as a server does."""
    import comfy.model_management
    import comfy.sd

    with torch.inference_mode():
        parts = comfy.sd.load_checkpoint_guess_config(str(checkpoint))[:3]
        comfy.model_management.load_models_gpu([parts[0]])  # the first load is the host's own change
    return parts


def photos(folder: Path) -> Any:
    """A bucketed dataset of a few photos, written below a folder."""
    from lora_workbench.training.data.buckets import BucketConfig, assign_buckets
    from lora_workbench.training.data.scan import scan_folder

    pictures = folder / "1_photo"
    pictures.mkdir()
    write_photos(pictures, longest=256)
    return assign_buckets(scan_folder(pictures, trigger="zorp"), BucketConfig(resolution=128, step=32))


def train(parts: tuple[Any, Any, Any], dataset: Any, folder: Path, sink: Any = None, **settings: Any) -> Any:
    """Train into `folder/runs`, with the cache in `folder/cache`; return the `Result`.

    Args:
        parts: MODEL, CLIP and VAE.
        dataset: Bucketed.
        folder: Of the run and the caches.
        sink: Progress sink.
        settings: Fields of TrainConfig, and further arguments of `train_lora` such as `watch`.
    """
    from lora_workbench.training.config import TrainConfig
    from lora_workbench.training.events import SilentSink
    from lora_workbench.training.train import train_lora

    more = {name: settings.pop(name) for name in ("watch", "start_from", "model_file") if name in settings}
    config = TrainConfig(**{"name": "run", "steps": 2, "rank": 4, "learning_rate": 1e-2, **settings})
    with torch.inference_mode():
        return train_lora(
            *parts, dataset, config, root=folder / "runs", cache_root=folder / "cache", sink=sink or SilentSink(),
            **more,
        )  # fmt: skip
