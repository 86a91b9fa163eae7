"""How near Estimate Training's time comes to that of a real run, on the model in the box."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterable
from pathlib import Path

from ..pack import ROOT
from .machine import measured_on
from .results import Column, Row, table

ROUNDS, STEPS = 3, 80


def forecast_benchmark(rounds: int = ROUNDS, steps: int = STEPS) -> list[Row]:
    """Estimate and train in turn; the median ratio of the estimated to the real time, and its spread."""
    import torch
    from lora_workbench.lab.base_model import assemble
    from lora_workbench.lab.base_model.painter import Painter
    from lora_workbench.lab.demo.pictures import write_pictures
    from lora_workbench.lab.world import concepts
    from lora_workbench.training.config import TrainConfig
    from lora_workbench.training.data.buckets import BucketConfig, assign_buckets
    from lora_workbench.training.data.scan import scan_folder
    from lora_workbench.training.estimate import estimate
    from lora_workbench.training.events import SilentSink
    from lora_workbench.training.train import train_lora

    from .learning import demo_buckets, demo_settings

    checkpoint = ROOT / ".host" / "bench" / "base.safetensors"
    assemble.assemble(checkpoint)
    painter = Painter(checkpoint)
    ratios = []
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():  # as ComfyUI runs nodes
        folder = Path(name)
        write_pictures(folder / "pictures" / "4_zorp", concepts.pictures("zorp", *concepts.TRAINED))
        dataset = assign_buckets(scan_folder(folder / "pictures"), BucketConfig(**demo_buckets()))
        config = TrainConfig(**{**demo_settings(), "steps": steps, "name": "forecast", "if_run_before": "train again"})
        for _ in range(rounds + 1):  # the first warms up
            model = painter.model, painter.clip, painter.vae, dataset, config
            found = estimate(*model, cache_root=folder / "cache", sink=SilentSink(), measure=True)
            done = train_lora(*model, root=folder / "runs", cache_root=folder / "cache", sink=SilentSink())
            assert found.seconds is not None
            ratios.append(found.seconds / done.summary.seconds)
            print(f"estimated {found.seconds:.1f} s, took {done.summary.seconds:.1f} s", flush=True)
    ratios = ratios[1:]
    return [{
        **measured_on(), "what": "time of a run", "estimate_of_real": round(statistics.median(ratios), 2),
        "least": round(min(ratios), 2), "most": round(max(ratios), 2),
    }]  # fmt: skip


def forecast_table(rows: Iterable[Row], rungs: Iterable[Row] = ()) -> str:
    """The estimate relative to what was measured, as Markdown.

    Args:
        rows: Of this benchmark.
        rungs: Of the rungs, whose memory was measured too.
    """
    memory = [{"what": f"memory: {row['rung']}", "estimate_of_real": row["estimate_of_growth"]} for row in rungs]
    rows = [*rows, *memory[:3]]  # those below take more on a CPU, where nothing is apart
    columns = {name: Column({}, value, 2) for name, value in
               (("estimate, of the real", "estimate_of_real"), ("least", "least"), ("most", "most"))}  # fmt: skip
    return table(rows, "what", columns)
