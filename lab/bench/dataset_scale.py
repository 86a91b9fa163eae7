"""One case of the dataset benchmark, in a process of its own: prints one JSON line.

    dataset_scale.py ours|host FOLDER

`ours`: read, hash, examine and bucket the pictures of a folder below the host's input. `host`: ComfyUI's own
LoadImageTextDataSetFromFolder on the same folder.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from .host import start_host
from .memory import PeakMemory

SIDE = 1024


def make_pictures(folder: Path, count: int) -> None:
    """Write JPEGs of 1024 × 1024 pixels with captions: crops of photos under clouds of colour, no two alike."""
    import random
    from concurrent.futures import ThreadPoolExecutor

    from lora_workbench.tests.support.photos import PHOTOS, photo
    from PIL import Image

    photos = [photo(name) for name in sorted(PHOTOS)]
    folder.mkdir(parents=True, exist_ok=True)

    def make(number: int) -> None:
        rng = random.Random(number)
        whole = photos[number % len(photos)]
        side = min(whole.size) * rng.uniform(0.4, 1)
        left, top = (rng.uniform(0, length - side) for length in whole.size)
        crop = whole.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
        clouds = Image.frombytes("RGB", (6, 6), rng.randbytes(6 * 6 * 3)).resize(crop.size, Image.Resampling.BICUBIC)
        Image.blend(crop, clouds, 0.5).save(folder / f"{number:05}.jpg", quality=90)
        (folder / f"{number:05}.txt").write_text(f"picture {number}\n", encoding="utf-8")

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(make, range(count)):
            pass


def ours(folder: Path) -> dict[str, float]:
    """Seconds of each part."""
    from lora_workbench.training.data.buckets import BucketConfig, assign_buckets
    from lora_workbench.training.data.scan import scan_folder
    from lora_workbench.training.events import SilentSink
    from lora_workbench.training.review.doctor import examine
    from lora_workbench.training.review.looks import look_at_all

    seconds: dict[str, float] = {}

    def timed(name: str, act: Any) -> Any:
        started = time.perf_counter()
        found = act()
        seconds[name] = time.perf_counter() - started
        return found

    dataset = timed("reading", lambda: scan_folder(folder))
    dataset = timed("bucketing", lambda: assign_buckets(dataset, BucketConfig()))
    looks = timed("hashing", lambda: look_at_all(dataset, SilentSink()))
    timed("examining", lambda: examine(dataset, looks))
    return seconds


def host(folder: Path) -> dict[str, float]:
    """Seconds of the host's loader."""
    import comfy_extras.nodes_dataset as nodes
    import folder_paths

    folder_paths.set_input_directory(str(folder.parent))
    started = time.perf_counter()
    loaded = nodes.LoadImageTextDataSetFromFolderNode.execute(folder.name)
    seconds = time.perf_counter() - started
    assert len(loaded.args[0]) == len(list(folder.glob("*.jpg")))
    return {"loading": seconds}


def main() -> None:
    """Run a case."""
    case, folder = sys.argv[1], Path(sys.argv[2])
    start_host()
    count = len(list(folder.glob("*.jpg")))
    import comfy_extras.nodes_dataset  # noqa: F401 - so that only what the loaders do is counted
    import imagehash  # noqa: F401
    from scipy import ndimage  # noqa: F401

    with PeakMemory(of_gpu=False) as memory:
        seconds = {"ours": ours, "host": host}[case](folder)
    print("RESULT " + json.dumps({"pictures": count, "seconds": seconds, "growth": memory.growth}), flush=True)
    sys.stdout.flush()
    os._exit(0)
