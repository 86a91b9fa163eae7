"""Compare Checkpoints: which checkpoints it shows, that they are what was saved, and that a cancel ends it."""

from __future__ import annotations

import gc
import os
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image, ImageChops
from support.rig import Snapshot
from support.session import loaded, photos, train

pytestmark = pytest.mark.usefixtures("comfy_host")


@pytest.fixture(scope="module")
def ran(comfy_host: Any, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of four steps with its text encoder, saved and sampled after each."""
    from lora_workbench.training.watch import SampleOptions, Watch

    folder = tmp_path_factory.mktemp("ran")
    parts, dataset = loaded(tiny_checkpoint), photos(folder / "1_photo", most=4, resolution=64)
    samples = SampleOptions(
        prompts="zorp --w 96\na hat --d 4", width=64, height=64, steps=1, cfg=1.0, every_epochs=0, every_steps=1
    )
    more = {"watch": Watch(samples=samples)}
    settings = {"steps": 4, "batch_size": 2, "epochs": 2, "save_every_steps": 1, "clip_l": True, "clip_l_rate": 1e-2}
    result = train(parts, dataset, folder, more=more, **settings)
    return SimpleNamespace(parts=parts, run=result.summary, lora=result.lora, samples=samples)


class Sink:
    def __init__(self, ends_at: int = 99) -> None:
        self.phases: list[tuple[str, int, int]] = []
        self._ends_at = ends_at

    def phase(self, *phase: Any) -> None:
        self.phases.append(phase)

    def cancelled(self) -> bool:
        return len(self.phases) >= self._ends_at


def compare(ran: Any, sink: Any = None, model: Any = None, samples: Any = None, **settings: Any) -> Any:
    """Compare, on a clone of the MODEL that painted nothing yet."""
    from lora_workbench.training import compare as module

    chosen = module.CompareSettings(**settings)
    sockets = (model or ran.parts[0].clone(), *ran.parts[1:])
    return module.compare(*sockets, ran.run, samples or ran.samples, chosen, sink or Sink())


def test_the_sheet_shows_what_the_samples_of_the_run_show(ran):
    before, sink = Snapshot(ran.parts[0]), Sink()
    clip = [tensor.clone() for tensor in ran.parts[1].cond_stage_model.state_dict().values()]
    made = compare(ran, sink, checkpoints="every 2", strengths="0.5, 1", chosen="step 4")
    assert made.text == "2 checkpoints, 2 strengths, 2 prompts. Hands on step 4 · epoch 2."
    assert sink.phases[0] == ("pictures", 0, 10) and sink.phases[-1] == ("pictures", 10, 10)
    files = [Path(ran.run.folder, "samples", f"step{step:08d}-{n}.png") for step in (0, 2, 4) for n in (1, 2)]
    shown = [Image.open(file).convert("RGB") for file in files]
    lefts, tops = (202, 202 + 96 + 12), [_top(made.sheet, 202, row) for row in (0, 2, 4)]  # without, and at strength 1
    for number, picture in enumerate(shown):
        left, top = lefts[number % 2], tops[number // 2]
        box = left + 4, top + 4, left + picture.width - 4, top + picture.height - 4
        inner = picture.crop((4, 4, picture.width - 4, picture.height - 4))
        assert ImageChops.difference(made.sheet.crop(box), inner).getbbox() is None, files[number].name
    assert all(torch.equal(tensor, made.lora[name]) for name, tensor in ran.lora.items())
    assert [name for name in before.differences(Snapshot(ran.parts[0])) if name not in ("objects", "grads")] == []
    # A tensor that SD1.5 lacks is uninitialized and can hold NaN.
    now = ran.parts[1].cond_stage_model.state_dict().values()
    assert all(torch.equal(one.nan_to_num(), other.nan_to_num()) for one, other in zip(clip, now, strict=True))


def _top(sheet: Image.Image, left: int, row: int) -> int:
    """Where a row of pictures 64 pixels high begins: rows are 76 apart, from the bottom margin up."""
    return sheet.height - 32 - 64 - (4 - row) * 76


def test_what_was_painted_is_not_painted_again(ran):
    model = ran.parts[0].clone()

    def pictures(**more: Any) -> int:
        sink = Sink()
        pictures.sheet = compare(ran, sink, model, **more).sheet
        return sink.phases[-1][2] if sink.phases else 0

    def outlined() -> list[int]:
        blue = [pictures.sheet.getpixel((26, _top(pictures.sheet, 0, 4) + 64 - height)) for height in (38, 114)]
        return [number for number, color in enumerate(blue) if max(color) > 200]

    two: dict[str, Any] = {"checkpoints": "last 2", "strengths": "1"}
    assert pictures(**two) == 6 and outlined() == [0]
    first = pictures.sheet
    assert pictures(**two, chosen="step 3") == 0 and outlined() == [1], "choosing another one paints"
    assert pictures(**two) == 0 and ImageChops.difference(first, pictures.sheet).getbbox() is None
    assert pictures(**two | {"strengths": "1, 0.5"}) == 4
    assert pictures(**two | {"strengths": "0.5"}) == 0
    assert pictures(**two) == 4, "pictures that were left out are still held"
    file = Path(ran.run.checkpoints[2])
    os.utime(file, ns=(1, 1))
    assert pictures(**two) == 2, "a file was written again"
    assert pictures(**two, samples=replace(ran.samples, seed=9)) == 6
    assert pictures(**two, with_base=False, samples=replace(ran.samples, cfg=2.0)) == 4
    assert pictures(**two) == 6
    other = SimpleNamespace(**{**vars(ran), "parts": (ran.parts[0], ran.parts[1].clone(), ran.parts[2])})
    compare(other, sink := Sink(), model, **two)
    assert sink.phases[-1][2] == 6, "another CLIP"


def test_a_cancelled_comparison_goes_on_where_it_was(ran):
    from lora_workbench.training.events import Cancelled

    model = ran.parts[0].clone()
    with pytest.raises(Cancelled):
        compare(ran, Sink(ends_at=7), model, with_base=False)
    compare(ran, sink := Sink(), model, with_base=False)
    assert sink.phases[-1] == ("pictures", 4, 4)


def test_pictures_are_not_held_longer_than_their_model(ran):
    from lora_workbench.training import compare as module

    model = ran.parts[0].clone()
    compare(ran, model=model, checkpoints="last 1")
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None and not list(module._last)


@pytest.mark.parametrize(
    ("text", "steps"),
    [("all", "1234"), ("last 2", "34"), ("every 3", "14"), ("every 2", "24"), ("last", "4"), ("3, 1", "13"),
     ("step 1, epoch 1, LAST", "124"), ("last 99", "1234")],
)  # fmt: skip
def test_which_checkpoints(text, steps, ran):
    from lora_workbench.training.compare import selected
    from lora_workbench.training.run.checkpoints import checkpoints

    assert [str(one.step) for one in selected(checkpoints(Path(ran.run.folder)), text)] == list(steps)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"checkpoints": "every 0"}, "checkpoints is 'every 0'. Write a whole number above 0 after every"),
        ({"checkpoints": "last two"}, "after last, such as last 2"),
        ({"checkpoints": " , "}, "checkpoints is empty"),
        ({"checkpoints": "7"}, "no checkpoint at step 7"),
        ({"chosen": "step 9"}, "no checkpoint at step 9"),
        ({"strengths": "0.5, much"}, "strengths has 'much'. Write numbers"),
        ({"strengths": "nan"}, "strengths has 'nan'"),
        ({"strengths": ""}, "strengths has ''"),
    ],
)
def test_what_is_refused(settings, words, ran):
    from lora_workbench.training.errors import UserError

    sink = Sink()
    with pytest.raises(UserError) as raised:
        compare(ran, sink, **settings)
    assert words in str(raised.value) and sink.phases == [], "it was painted first"


def test_a_cancel_ends_it_and_the_model_goes_back(ran):
    from lora_workbench.training.events import Cancelled

    before = Snapshot(ran.parts[0])
    with pytest.raises(Cancelled):
        compare(ran, Sink(ends_at=4), with_base=False)
    assert [name for name in before.differences(Snapshot(ran.parts[0])) if name not in ("objects", "grads")] == []


def test_a_run_without_files(ran, tmp_path):
    from dataclasses import replace

    from lora_workbench.training.errors import UserError

    gone = SimpleNamespace(**{**vars(ran), "run": replace(ran.run, folder=str(tmp_path / "gone"))})
    with pytest.raises(UserError, match="no checkpoints: its files are gone"):
        compare(gone)
