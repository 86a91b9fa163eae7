"""What a run leaves to look at: its report, its TensorBoard log, and the chart of its RUN."""

from __future__ import annotations

import base64
import importlib.util
import io
import re
import sys
import time
import types
import urllib.error
import urllib.request
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.photos import write_photos
from support.prompts import defaults, node

EVIL = '<script>alert("x")</script><img src=x onerror=y>'


@pytest.fixture(scope="module")
def checkpoint(comfy_host, tiny_checkpoint) -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE of the small SD1.5 checkpoint."""
    import comfy.sd

    with torch.inference_mode():
        return comfy.sd.load_checkpoint_guess_config(str(tiny_checkpoint))[:3]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Any:
    """Two pictures; the caption of one is an attack."""
    from lora_workbench.training.data.buckets import BucketConfig, assign_buckets
    from lora_workbench.training.data.scan import scan_folder

    folder = tmp_path_factory.mktemp("data") / "1_photo"
    write_photos(folder, ["cat", "coffee"], longest=128)
    found = assign_buckets(scan_folder(folder, trigger="zorp"), BucketConfig(resolution=64, step=32))
    first, second = found.pictures
    return found.with_pictures((replace(first, caption=f"zorp, {EVIL}"), second))


class Samples:
    """Stands in for the samples of a run: two pictures after each step, one of them gone at its end."""

    wish = ""

    def __init__(self, keeper: Any) -> None:
        self.keeper = keeper

    def is_due(self, run: Any, epoch_ended: bool) -> bool:
        return True

    def look(self, run: Any) -> None:
        folder = self.keeper.folder.path / "samples"
        folder.mkdir(exist_ok=True)
        pictures = []
        for number, prompt in enumerate((EVIL, "zorp, a hat"), 1):
            name = f"samples/{run.step:06d}-{number}.png"
            if number == 1 or run.step != 2:
                Image.new("RGB", (640, 400), (200, 40 * run.step, 0)).save(self.keeper.folder.path / name)
            else:
                name = f"../../../{name}"
            line = {"file": name, "number": number, "prompt": prompt, "seed": 0, "width": 640, "height": 400}
            pictures.append(line)
        self.keeper.history.add("sample", step=run.step, epoch=run.epoch, seconds=0.1, pictures=pictures)


def train(parts: Any, dataset: Any, folder: Path, monkeypatch: Any = None, **settings: Any) -> Any:
    from lora_workbench.training import train as module
    from lora_workbench.training.config import TrainConfig
    from lora_workbench.training.events import SilentSink
    from lora_workbench.training.watch import HeldOut, Watch

    if monkeypatch:
        plain = module.watchers_of
        monkeypatch.setattr(module, "watchers_of", lambda keeper, *more: [Samples(keeper), *plain(keeper, *more)])
    config = TrainConfig(**{"name": "run", "steps": 2, "rank": 4, "learning_rate": 1e-2, **settings})
    with torch.inference_mode():
        return module.train_lora(
            *parts, dataset, config, root=folder / "runs", cache_root=folder / "cache", sink=SilentSink(),
            watch=Watch(held_out=HeldOut(2, 0.0, dataset)),
        )  # fmt: skip


class Seen(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.images: list[Image.Image] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag == "img":
            kind, _, data = dict(attrs)["src"].partition(";base64,")
            assert kind in ("data:image/png", "data:image/jpeg")
            self.images.append(Image.open(io.BytesIO(base64.b64decode(data))))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def seen(page: str) -> Seen:
    found = Seen()
    found.feed(page)
    return found


def test_a_report_holds_the_run_and_nothing_that_runs(checkpoint, dataset, tmp_path, monkeypatch) -> None:
    from lora_workbench.training.run import keeper

    took, real = [], keeper.run_report

    def timed(*args: Any) -> str:
        began = time.process_time()
        page = real(*args)
        took.append(time.process_time() - began)
        return page

    monkeypatch.setattr(keeper, "run_report", timed)
    result = train(checkpoint, dataset, tmp_path, monkeypatch, rank=6, save_every_steps=1, alpha=2.5)
    page = (tmp_path / "runs" / "run" / "report.html").read_text(encoding="utf-8")
    found = seen(page)
    texts = " ".join(found.texts)
    # Users' words are words.
    assert "script" not in found.tags and not any(name.startswith("on") for name, _ in found.attributes)
    assert f"zorp, {EVIL}" in found.texts and EVIL in found.texts
    links = [value for name, value in found.attributes if name in ("src", "href", "action", "data")]
    assert all(value.startswith("data:image/") for value in links) and "url(" not in page and "@import" not in page
    assert str(tmp_path) not in page and str(dataset.root) not in page
    # Chart, three looks at two samples of which one is gone, and the sheet of the dataset.
    sizes = [image.size for image in found.images]
    assert sizes[0] == (1200, 520) and sizes[1:-1] == [(320, 200)] * 5 and sizes[-1][0] == 1200
    assert "gone" in found.texts
    reds = [np.asarray(image.convert("RGB"))[100, 160, 1] for image in found.images[1:-1:2]]
    assert reds[0] < 10, "the samples are not in the order of the steps"
    # Settings that differ come first; what took effect is in brackets.
    assert texts.index("alpha") < texts.index("at the default") < texts.index("batch_size")
    assert "auto (" in texts
    assert f"{result.summary.held_out[-1]['loss']:.5f}" in found.texts
    assert "2 held-out pictures are trained too" in texts
    assert took[0] < 2, "a small report takes long"  # 0.4 s where nothing else runs
    assert "run-step00000001.safetensors" in found.texts and "run.safetensors" in found.texts


def test_a_failure_costs_the_report_alone(checkpoint, dataset, tmp_path, monkeypatch) -> None:
    from lora_workbench.training.run import keeper

    def broken(*_: Any) -> str:
        raise ValueError("of a picture")

    monkeypatch.setattr(keeper, "run_report", broken)
    result = train(checkpoint, dataset, tmp_path, steps=1)
    assert result.summary.outcome == "finished" and not (Path(result.summary.folder) / "report.html").exists()


def test_many_samples_are_thinned(tmp_path) -> None:
    from lora_workbench.training.review.run_report import _samples, evenly

    assert evenly(range(100), 12)[::11] == [0, 99] and len(evenly(range(100), 12)) == 12
    assert evenly([1, 2], 12) == [1, 2] and evenly([1, 2, 3], 1) == [3]
    folder = tmp_path / "samples"
    folder.mkdir()
    Image.new("RGB", (64, 64)).save(folder / "a.png")
    pictures = [{"file": "samples/a.png", "number": n, "prompt": str(n)} for n in range(1, 31)]
    lines = [{"kind": "sample", "step": step, "pictures": pictures} for step in range(50)]
    assert _samples(tmp_path, lines).count("<img") == 96


def test_a_sample_that_failed_leaves_its_cell_empty(tmp_path) -> None:
    from lora_workbench.training.review.run_report import _samples

    folder = tmp_path / "samples"
    folder.mkdir()
    for color in ("red", "blue"):
        Image.new("RGB", (64, 64), color).save(folder / f"{color}.png")
    red = {"file": "samples/red.png", "number": 1, "prompt": "a red one"}
    blue = {"file": "samples/blue.png", "number": 2, "prompt": "a blue one"}
    lines = [{"kind": "sample", "step": step, "pictures": found} for step, found in enumerate(([red, blue], [blue]))]
    page = _samples(tmp_path, lines)
    assert re.findall("<th>(.*?)</th>", page) == ["", "a red one", "a blue one"]
    rows = [re.findall("<td>(.*?)</td>", row)[1:] for row in page.split("<tr>")[2:]]
    shown = [[re.findall('alt="(.*?)"', cell) for cell in row] for row in rows]
    assert shown == [[["a red one"], ["a blue one"]], [[], ["a blue one"]]]


class Writer:
    """Stands in for TensorBoard's writer, which the test environment may lack."""

    made: Writer
    fails_at = -1

    def __init__(self, folder: str) -> None:
        Writer.made = self
        self.folder, self.scalars, self.images, self.is_closed = folder, [], [], False

    def add_scalar(self, name: str, value: float, step: int) -> None:
        if step == self.fails_at:
            raise OSError(28, "No space left on device")
        self.scalars.append((name, value, step))

    def add_image(self, name: str, pixels: Any, step: int, dataformats: str) -> None:
        self.images.append((name, pixels.shape, step, dataformats))

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.is_closed = True


def test_tensorboard_gets_the_lines(checkpoint, dataset, tmp_path, monkeypatch) -> None:
    """With the package itself where it is installed, else with a recorded writer."""
    if importlib.util.find_spec("tensorboard") is None:
        module = types.ModuleType("torch.utils.tensorboard")
        module.SummaryWriter = Writer  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
        result = train(checkpoint, dataset, tmp_path, monkeypatch, tensorboard=True)
        scalars, images = Writer.made.scalars, Writer.made.images
        assert Writer.made.folder == str(tmp_path / "runs" / "run" / "tensorboard") and Writer.made.is_closed
        # A full disk costs the log.
        monkeypatch.setattr(Writer, "fails_at", 1)
        full = train(checkpoint, dataset, tmp_path / "full", tensorboard=True)
        assert all(torch.equal(result.lora[name], tensor) for name, tensor in full.lora.items())
        assert [hint for hint in full.summary.hints if "TensorBoard log could not be written" in hint]
    else:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        result = train(checkpoint, dataset, tmp_path, monkeypatch, tensorboard=True)
        read = EventAccumulator(str(tmp_path / "runs" / "run" / "tensorboard")).Reload()
        tags = read.Tags()
        scalars = [(tag, event.value, event.step) for tag in tags["scalars"] for event in read.Scalars(tag)]
        images = [(tag, (event.height, event.width, 3), event.step, "HWC")
                  for tag in tags["images"] for event in read.Images(tag)]  # fmt: skip
    assert not [hint for hint in result.summary.hints if "TensorBoard" in hint]
    by_name = {(name, step): value for name, value, step in scalars}
    assert by_name["loss/step", 2] == pytest.approx(result.summary.losses[1])
    assert by_name["held_out/base", 0] == pytest.approx(result.summary.held_out[0]["base"])
    assert ("concept/1_photo", 1) in by_name and ("learning_rate", 1) in by_name and ("loss/epoch", 2) in by_name
    assert ("sample/1", (400, 640, 3), 1, "HWC") in images


def test_the_tensorboard_log_is_closed_before_a_run_is_discarded(checkpoint, dataset, tmp_path, monkeypatch) -> None:
    """Windows removes no file that is open."""
    from lora_workbench.training.events import Stopped
    from lora_workbench.training.run.folder import RunFolder

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    real, closed = RunFolder.discard, []
    monkeypatch.setattr(RunFolder, "discard", lambda self: closed.append(Writer.made.is_closed) or real(self))

    def stops(self: Any, run: Any) -> None:
        raise Stopped(keeps=False)

    monkeypatch.setattr(Samples, "look", stops)
    with pytest.raises(BaseException) as raised:
        train(checkpoint, dataset, tmp_path, monkeypatch, tensorboard=True)
    assert raised.type.__name__ == "InterruptProcessingException"
    assert closed == [True] and not (tmp_path / "runs" / "run").exists()


def test_without_the_package_one_sentence_says_how_to_install_it(checkpoint, dataset, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    result = train(checkpoint, dataset, tmp_path, steps=1, tensorboard=True)
    (hint,) = [hint for hint in result.summary.hints if "TensorBoard" in hint]
    assert hint.endswith("In ComfyUI's Python run: pip install tensorboard")
    assert result.summary.outcome == "finished" and not (tmp_path / "runs" / "run" / "tensorboard").exists()


def test_the_nodes_and_the_route(server) -> None:
    """Held-out Pictures → LoRA Trainer → Loss Chart, and the report as a page gets it."""
    data = defaults(server, "LoadDataset") | {"folder": "photos", "trigger": "zorp", "background": "#fefefc"}
    trainer = defaults(server, "LoRATrainer") | {"name": "held", "rank": 2, "steps": 3}
    prompt = {
        "load": node("CheckpointLoaderSimple", ckpt_name="tiny_sd15.safetensors"),
        "data": node("LoadDataset", **data),
        "buckets": node("BucketImages", dataset=["data", 0], **defaults(server, "BucketImages") | {"resolution": 64}),
        "held": node("HeldOutPictures", dataset=["buckets", 0], share=30.0, every_steps=2),
        "train": node(
            "LoRATrainer", model=["load", 0], clip=["load", 1], vae=["load", 2], dataset=["buckets", 0],
            held_out=["held", 0], **trainer,
        ),
        "chart": node("LossChart", run=["train", 2], **defaults(server, "LossChart") | {"width": 640, "height": 400}),
        "map": node("LossChart", loss_map=["train", 1], **defaults(server, "LossChart")),
    }  # fmt: skip
    entry = server.run(prompt, timeout=240)
    for name, size in (("chart", (640, 400)), ("map", (1200, 600))):
        (file,) = entry["outputs"][name]["images"]
        picture = Image.open(io.BytesIO(server.view(file["filename"], file["subfolder"], file["type"])))
        assert picture.size == size
    (result,) = entry["outputs"]["train"]["lora_workbench_run"]
    told = server.get(f"/lora_workbench/runs/{result['id']}")
    assert [line["step"] for line in told["lines"] if line["kind"] == "held_out"] == [0, 2, 3]
    address = f"{server.url}/lora_workbench/runs/{result['id']}/report"
    with urllib.request.urlopen(address, timeout=30) as response:
        policy, page = response.headers["Content-Security-Policy"], response.read().decode()
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'; sandbox"
    assert "<h1>held</h1>" in page and str(server.base) not in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(address.replace(result["id"], "ffffffff"), timeout=30)
