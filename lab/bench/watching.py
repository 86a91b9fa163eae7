"""What watching a run costs: the time between two steps, that inside events and logs, and that of its samples.

It trains the model in the box, whose steps are short: a fixed cost counts most there. A stand-in for the server turns
each event into JSON in the training's own thread. The real one does that in another thread, so this is an upper bound.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any
from unittest import mock

from ..pack import ROOT
from .machine import measured_on
from .results import Column, Row, table

ROUNDS, STEPS, SAMPLED_EVERY = 5, 120, 40


def watching_benchmark(rounds: int = ROUNDS, steps: int = STEPS) -> list[Row]:
    """Train with samples in some rounds; shares of a step's time, in percent: median, least and most."""
    import torch
    from lora_workbench.lab.base_model import assemble
    from lora_workbench.lab.base_model.painter import Painter
    from lora_workbench.lab.demo.pictures import write_pictures
    from lora_workbench.lab.world import concepts
    from lora_workbench.training.config import TrainConfig
    from lora_workbench.training.data.buckets import BucketConfig, assign_buckets
    from lora_workbench.training.data.scan import scan_folder
    from lora_workbench.training.events import Place
    from lora_workbench.training.host.progress import NodeSink
    from lora_workbench.training.train import train_lora
    from lora_workbench.training.watch import SampleOptions, Watch

    from .learning import demo_buckets, demo_settings

    checkpoint = ROOT / ".host" / "bench" / "base.safetensors"
    assemble.assemble(checkpoint)
    painter = Painter(checkpoint)
    place = Place("workflow", "1", "prompt")
    samples = SampleOptions(
        prompts="a picture of zorp", width=128, height=128, steps=20, every_epochs=0, every_steps=SAMPLED_EVERY
    )
    shares: dict[str, list[float]] = {"panel, events and logs": [], "one sample of 20 steps": []}
    with tempfile.TemporaryDirectory() as name, torch.inference_mode(), stand_in_server():
        folder = Path(name)
        write_pictures(folder / "pictures" / "4_zorp", concepts.pictures("zorp", *concepts.TRAINED))
        dataset = assign_buckets(scan_folder(folder / "pictures"), BucketConfig(**demo_buckets()))
        for number in range(rounds + 1):
            settings = {**demo_settings(), "steps": steps, "name": f"watched{number}"}
            with timed_watching() as spent:
                train_lora(
                    painter.model, painter.clip, painter.vae, dataset,
                    TrainConfig(**{**settings, "if_run_before": "train again"}), root=folder / "runs",
                    cache_root=folder / "cache", sink=NodeSink("1", place), watch=Watch(place, samples),
                )  # fmt: skip
            rows = (folder / "runs" / settings["name"] / "log.jsonl").read_text(encoding="utf-8").splitlines()
            lines = [json.loads(row) for row in rows]
            per_step = [line for line in lines if line["kind"] == "step"][-1]["seconds"] / steps
            if number:  # the first warms up
                shares["panel, events and logs"].append(100 * sum(spent) / steps / per_step)
                times = [line["seconds"] for line in lines if line["kind"] == "sample"]
                shares["one sample of 20 steps"].append(100 * statistics.median(times) / per_step)
    return [
        {**measured_on(), "what": what, "percent_of_step": round(statistics.median(found), 2),
         "least": round(min(found), 2), "most": round(max(found), 2)}
        for what, found in shares.items()
    ]  # fmt: skip


@contextmanager
def timed_watching() -> Iterator[list[float]]:
    """Give a list of seconds, whose sum is the time between two steps and in the history of a run inside the block.

    The time in which samples are made and held-out pictures are measured is left out.
    """
    from lora_workbench.training.between import Between
    from lora_workbench.training.held_out import HeldOutLoss
    from lora_workbench.training.run.history import History
    from lora_workbench.training.samples import Samples

    spent: list[float] = []
    depth = 0

    def timed(plain: Callable[..., Any], is_left_out: bool = False) -> Callable[..., Any]:
        @wraps(plain)
        def call(*args: Any, **values: Any) -> Any:
            nonlocal depth
            is_outermost = not depth
            began, depth = time.perf_counter(), depth + 1
            try:
                return plain(*args, **values)
            finally:
                depth -= 1
                seconds = time.perf_counter() - began
                if is_left_out and not is_outermost:
                    spent.append(-seconds)
                elif is_outermost and not is_left_out:
                    spent.append(seconds)

        return call

    names = [name for name, value in vars(History).items() if callable(value) and not name.startswith("_")]
    with ExitStack() as stack:
        for owner, name in [(Between, "after_step"), *((History, name) for name in names)]:
            stack.enter_context(mock.patch.object(owner, name, timed(getattr(owner, name))))
        for watcher in (Samples, HeldOutLoss):
            stack.enter_context(mock.patch.object(watcher, "look", timed(watcher.look, is_left_out=True)))
        yield spent


@contextmanager
def stand_in_server() -> Iterator[None]:
    """Have every event and text turned into JSON, as a server with an open page does."""
    from lora_workbench.training.host import server

    class StandIn:
        def send_sync(self, event: str, data: Any, sid: Any = None) -> None:
            json.dumps({"type": event, "data": data})

        def send_progress_text(self, text: str, node_id: str, sid: Any = None) -> None:
            json.dumps([text, node_id])

    instance = StandIn()
    with mock.patch.object(server, "_instance", lambda: instance):
        yield


def watching_table(rows: Iterable[Row]) -> str:
    """The shares as Markdown."""
    columns = {name: Column({}, value, 2) for name, value in
               (("% of a step", "percent_of_step"), ("least", "least"), ("most", "most"))}  # fmt: skip
    return table(rows, "what", columns)
