"""Captioning a dataset: which pictures, what is kept, what is written, and how errors are handled."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from lora_workbench.training.cache.store import TensorCache
from lora_workbench.training.captions.auto import CaptioningConfig, caption_dataset, out_of_memory
from lora_workbench.training.captions.onnx_tagger import OnnxTagger, TagSettings
from lora_workbench.training.data.mixing import concat
from lora_workbench.training.data.scan import scan_folder
from lora_workbench.training.data.words import has_own_caption
from lora_workbench.training.errors import UserError
from lora_workbench.training.events import Cancelled, SilentSink
from PIL import Image
from support.taggers import tagger

COLORS = {"a": "#ff0000", "b": "#00ff00", "c": "#0000ff", "d": "#ff0000"}
SEEN = {"a": "zorp, red hair, ^_^", "b": r"zorp, green \(dress\), ^_^", "c": "zorp, blue sea, ^_^",
        "d": "zorp, red hair, ^_^"}  # fmt: skip


class Counting(SilentSink):
    """Records the progress, and cancels after a number of pictures."""

    def __init__(self, cancel_at: int | None = None) -> None:
        self.reported: list[int] = []
        self.cancel_at = cancel_at

    def phase(self, text: str, done: int, total: int) -> None:
        self.reported.append(done)

    def cancelled(self) -> bool:
        return self.cancel_at is not None and len(self.reported) > self.cancel_at


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "set" / "2_my_class"
    folder.mkdir(parents=True)
    for name, color in COLORS.items():
        Image.new("RGB", (64, 64), color).save(folder / f"{name}.png")
    (folder / "b.txt").write_text("written by hand", encoding="utf-8")
    return folder.parent


@pytest.fixture
def made(tmp_path: Path) -> OnnxTagger:
    # zorp is the trigger here, so the character tag of that name is excluded.
    return OnnxTagger(tagger(tmp_path / "tagger"), TagSettings(exclude="zorp"))


def run(root: Path, captioner, tmp_path: Path, sink=None, **config: str):
    dataset = scan_folder(root, trigger="zorp")
    return caption_dataset(dataset, captioner, CaptioningConfig(**config), TensorCache(tmp_path / "cache"),
                           sink or SilentSink())  # fmt: skip


def captions(found) -> dict[str, str]:
    return {picture.path.stem: picture.caption for picture in found.dataset.pictures}


def test_only_missing_captions_are_made(pictures, made, tmp_path):
    sink = Counting()
    found = run(pictures, made, tmp_path, sink)
    assert captions(found) == {**SEEN, "b": "zorp, written by hand"}
    assert (found.made, found.kept, found.written, found.problems) == (3, 1, 0, ())
    assert sink.reported == [0, 1, 2, 3]
    assert found.describe() == "3 captioned, 1 kept."
    assert sorted(file.name for file in pictures.rglob("*.txt")) == ["b.txt"]


def test_replace_and_append(pictures, made, tmp_path):
    assert captions(run(pictures, made, tmp_path, mode="replace")) == SEEN
    found = captions(run(pictures, made, tmp_path, mode="append"))
    assert found["b"] == r"zorp, written by hand, green \(dress\), ^_^"
    assert found["a"] == "zorp, my_class, red hair, ^_^"


def test_nothing_is_appended_to_json(pictures, made, tmp_path):
    caption = '{"subject": "a zorp"}'
    (pictures / "2_my_class" / "b.txt").write_text(caption, encoding="utf-8")
    found = run(pictures, made, tmp_path, mode="append")
    assert captions(found)["b"] == caption and captions(found)["a"] == "zorp, my_class, red hair, ^_^"
    assert found.describe() == (
        "3 captioned, 1 kept.\n"
        "1 JSON caption left unchanged: appended text would break JSON. Set mode to replace instead."
    )
    assert captions(run(pictures, made, tmp_path, mode="replace"))["b"] == SEEN["b"]


def test_text_that_was_appended_and_written_is_not_appended_again(pictures, made, tmp_path):
    first = captions(run(pictures, made, tmp_path, mode="append", write="all .txt files"))
    assert captions(run(pictures, made, tmp_path, mode="append", write="all .txt files")) == first
    # Compared as whole tags: a caption can contain the same letters.
    (pictures / "2_my_class" / "a.txt").write_text("bored hair, ^_^!", encoding="utf-8")
    assert captions(run(pictures, made, tmp_path, mode="append"))["a"] == "zorp, bored hair, ^_^!, red hair, ^_^"


def test_nothing_is_captioned_twice(pictures, made, tmp_path, monkeypatch):
    run(pictures, made, tmp_path)
    monkeypatch.setattr(made, "caption", lambda pictures: pytest.fail("captioned again"))
    again = run(pictures, made, tmp_path)
    assert again.made == 0 and captions(again)["a"] == SEEN["a"]
    (pictures / "2_my_class" / "a.png").rename(pictures / "2_my_class" / "moved.png")
    assert captions(run(pictures, made, tmp_path))["moved"] == SEEN["a"]


def test_another_setting_captions_again(pictures, made, tmp_path):
    run(pictures, made, tmp_path)
    other = OnnxTagger(tmp_path / "tagger", TagSettings(exclude="zorp", general_threshold=0.5))
    assert captions(run(pictures, other, tmp_path))["a"] == "zorp, red hair"


def test_existing_files_are_overwritten_only_on_request(pictures, made, tmp_path):
    folder = pictures / "2_my_class"
    found = run(pictures, made, tmp_path, mode="replace", write="new .txt files")
    assert found.written == 3
    assert (folder / "a.txt").read_text(encoding="utf-8") == SEEN["a"] + "\n"
    assert (folder / "b.txt").read_text(encoding="utf-8") == "written by hand"
    assert run(pictures, made, tmp_path, mode="replace", write="all .txt files").written >= 1
    assert (folder / "b.txt").read_text(encoding="utf-8") == SEEN["b"] + "\n"
    assert not list(folder.glob("*.part"))


def test_disks_without_hard_links(pictures, made, tmp_path, monkeypatch):
    """As on exFAT and many network disks, whose error is simulated here."""

    def no_links(*_args):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    folder = pictures / "2_my_class"
    assert run(pictures, made, tmp_path, mode="replace", write="new .txt files").written == 3
    assert (folder / "a.txt").read_text(encoding="utf-8") == SEEN["a"] + "\n"
    assert (folder / "b.txt").read_text(encoding="utf-8") == "written by hand"
    assert not list(folder.glob("*.part"))


def test_a_read_only_caption_is_named_and_the_rest_is_written(pictures, made, tmp_path, monkeypatch):
    locked = pictures / "2_my_class" / "b.txt"
    # Root may write every file, so the answer of os.access is simulated here.
    really = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: False if Path(path) == locked else really(path, mode))
    found = run(pictures, made, tmp_path, mode="replace", write="all .txt files")
    assert found.written == 3 and locked.read_text(encoding="utf-8") == "written by hand"
    assert len(found.problems) == 1 and "b.txt was not written (it is read-only)" in found.problems[0]


def test_two_pictures_with_the_same_stem_write_no_file(pictures, made, tmp_path):
    Image.new("RGB", (64, 64), "#0000ff").save(pictures / "2_my_class" / "a.jpg")
    found = run(pictures, made, tmp_path, write="new .txt files")
    assert not (pictures / "2_my_class" / "a.txt").exists() and (pictures / "2_my_class" / "c.txt").exists()
    assert any("two pictures have that name" in problem for problem in found.problems)


def test_caption_suffixes_match_in_any_case(pictures, made, tmp_path):
    folder = pictures / "2_my_class"
    (folder / "b.txt").rename(folder / "b.TXT")
    assert run(pictures, made, tmp_path, mode="replace", write="new .txt files").written == 3
    assert (folder / "b.TXT").read_text(encoding="utf-8") == "written by hand"
    run(pictures, made, tmp_path, mode="replace", write="all .txt files")
    assert (folder / "b.TXT").read_text(encoding="utf-8") == SEEN["b"] + "\n"
    assert sorted(file.name for file in folder.glob("b.*")) == ["b.TXT", "b.png"]


def test_captions_of_every_form_count_as_existing(pictures, made, tmp_path):
    folder = pictures / "2_my_class"
    (folder / "b.txt").rename(folder / "b.png.txt")
    (folder / "a.json").write_text('{"caption": "from a form"}')
    (folder / "c.json").write_text('{"rating": 5}')
    assert run(pictures, made, tmp_path, mode="replace", write="new .txt files").written == 2
    assert sorted(file.name for file in folder.glob("*.txt")) == ["b.png.txt", "c.txt", "d.txt"]
    assert (folder / "b.png.txt").read_text(encoding="utf-8") == "written by hand"
    run(pictures, made, tmp_path, mode="replace", write="all .txt files")
    assert sorted(file.name for file in folder.glob("*.txt")) == ["a.txt", "b.png.txt", "c.txt", "d.txt"]
    assert (folder / "b.png.txt").read_text(encoding="utf-8") == SEEN["b"] + "\n"


def test_a_folder_concatenated_with_itself_has_no_name_conflicts(pictures, made, tmp_path):
    dataset = concat([scan_folder(pictures), scan_folder(pictures)])
    config = CaptioningConfig(write="new .txt files")
    found = caption_dataset(dataset, made, config, TensorCache(tmp_path / "cache"), SilentSink())
    assert found.problems == () and (pictures / "2_my_class" / "a.txt").exists()


def test_a_deleted_picture_is_skipped_and_named(pictures, made, tmp_path):
    dataset = scan_folder(pictures, trigger="zorp")
    dataset.pictures[0].path.unlink()
    config = CaptioningConfig()
    found = caption_dataset(dataset, made, config, TensorCache(tmp_path / "cache"), SilentSink())
    assert [picture.path.stem for picture in found.dataset.pictures] == ["b", "c", "d"]
    assert "a.png is not there any more" in found.problems[0]


def test_a_cancel_keeps_finished_captions(pictures, made, tmp_path):
    made.batch = 1
    with pytest.raises(Cancelled):
        run(pictures, made, tmp_path, Counting(cancel_at=1), mode="replace")
    # The first is cached, and so is the last, which has the same content.
    assert run(pictures, made, tmp_path, mode="replace").made == 2


def test_too_little_memory_halves_the_batch(pictures, made, tmp_path):
    import torch

    real, sizes = made.caption, []

    def short(opened):
        sizes.append(len(opened))
        if len(opened) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(opened)

    made.caption = short
    found = run(pictures, made, tmp_path, mode="replace")
    assert captions(found) == SEEN and sizes[-1] == 1
    assert any("Not enough memory" in problem for problem in found.problems)
    assert out_of_memory(RuntimeError("Failed to allocate memory for requested buffer"))
    assert not out_of_memory(ValueError("no"))


def test_a_dataset_without_readable_pictures_is_an_error(pictures, made, tmp_path):
    for file in pictures.rglob("*.png"):
        file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(UserError, match="None of the 4 pictures can be read"):
        run(pictures, made, tmp_path, mode="replace")


def test_what_counts_as_a_caption_of_its_own(pictures):
    dataset = scan_folder(pictures, trigger="zorp")
    assert {picture.path.stem: has_own_caption(picture, "zorp") for picture in dataset.pictures} == {
        "a": False, "b": True, "c": False, "d": False}  # fmt: skip
