"""Taggers in onnxruntime, on small real ONNX files in the formats of published taggers."""

from __future__ import annotations

import pytest
from lora_workbench.training.captions.onnx_tagger import OnnxTagger, TagSettings
from lora_workbench.training.captions.prompt_weights import weighted_parts
from lora_workbench.training.errors import UserError
from PIL import Image
from support.taggers import CSV, WEIGHTS, tagger


def plain(color: str, size: tuple[int, int] = (448, 448)) -> Image.Image:
    return Image.new("RGB", size, color)


PICTURES = [plain("#ff0000"), plain("#00ff00"), plain("#0000ff")]


@pytest.mark.parametrize("batch", ["N", 1, 2])
def test_a_wd_tagger_writes_the_tags_it_sees(tmp_path, batch):
    made = OnnxTagger(tagger(tmp_path, batch=batch), TagSettings())
    assert made.batch == (8 if batch == "N" else batch)
    found = []
    for at in range(0, 3, made.batch):
        found += made.caption(PICTURES[at : at + made.batch])
    # Highest score first, without ratings; the emoticon keeps its underscore; zorp (0.96) is above its threshold.
    assert found == ["red hair, zorp, ^_^", r"green \(dress\), ^_^", "blue sea, ^_^"]


def test_settings_decide_what_is_written(tmp_path):
    folder = tagger(tmp_path)

    def of(**settings: object) -> str:
        return OnnxTagger(folder, TagSettings(**settings)).caption(PICTURES[:1])[0]

    assert of(keep_underscores=True) == "red_hair, zorp, ^_^"
    assert of(exclude="RED hair, ^*") == "zorp"
    for written in ("green_(dress)", "Green (dress)", r"green \(dress\)"):
        assert OnnxTagger(folder, TagSettings(exclude=written)).caption(PICTURES[1:2]) == ["^_^"]
    assert of(character_threshold=0.99) == "red hair, ^_^"
    assert of(general_threshold=0.5) == "red hair, zorp"
    assert OnnxTagger(folder, TagSettings(escape_brackets=False)).caption(PICTURES[1:2]) == ["green (dress), ^_^"]


def test_tags_come_out_safe_for_training(tmp_path):
    made = OnnxTagger(tagger(tmp_path), TagSettings())
    # ComfyUI trains the backslash of a square bracket.
    assert [made._written(name) for name in ("miku_(vocaloid)", ":)", "(o)_(o)", "a_[b]")] == [
        r"miku \(vocaloid\)", r":\)", r"\(o\)_\(o\)", "a [b]"]  # fmt: skip
    assert all(not weighted_parts(made._written(name)) for name in ("miku_(vocaloid)", ":)", "(o)_(o)"))


def test_pictures_are_padded_with_white(tmp_path):
    """A narrow picture is padded, not stretched: white scores for all three colours."""
    made = OnnxTagger(tagger(tmp_path), TagSettings(general_threshold=0.5))
    assert made.caption([plain("#ff0000", (20, 400))]) == [r"red hair, green \(dress\), blue sea, zorp"]


def test_a_deepdanbooru_folder_has_a_plain_list(tmp_path):
    # Red, green, blue from 0 to 1.
    folder = tagger(tmp_path, answers_to=WEIGHTS[::-1] * 255)
    (folder / "selected_tags.csv").unlink()
    (folder / "tags.txt").write_text("rating:safe\nred\ngreen\nblue\nface\nzorp\n", encoding="utf-8")
    found = [OnnxTagger(folder, TagSettings()).caption([picture])[0] for picture in PICTURES]
    assert found == ["red, zorp, face", "green, face", "blue, face"]


def test_a_half_precision_model(tmp_path):
    made = OnnxTagger(tagger(tmp_path, kind="FLOAT16"), TagSettings())
    assert made.caption(PICTURES[:1]) == ["red hair, zorp, ^_^"]


def test_the_identity_changes_with_model_and_settings(tmp_path):
    one = OnnxTagger(tagger(tmp_path / "one"), TagSettings())
    assert one.identity == OnnxTagger(tagger(tmp_path / "two"), TagSettings()).identity
    assert one.identity != OnnxTagger(tagger(tmp_path / "one"), TagSettings(exclude="x")).identity
    assert one.identity != OnnxTagger(tagger(tmp_path / "three", batch=2), TagSettings()).identity


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda folder: (folder / "model.onnx").unlink(), "has no .onnx file"),
        (lambda folder: (folder / "selected_tags.csv").unlink(), "has no selected_tags.csv"),
        (lambda folder: (folder / "model.onnx").write_bytes(b"no model"), "cannot be loaded"),
        (lambda folder: (folder / "selected_tags.csv").write_text("a,b\n1,2\n"), "needs the columns name and category"),
        (lambda folder: (folder / "selected_tags.csv").write_text(CSV + "7,more,0,1\n"), "knows 6 tags, .* has 7"),
        (lambda folder: tagger(folder, kind="INT32"), r"takes tensor\(int32\)"),
        (lambda folder: tagger(folder, answer="best"), "gives a single number"),
        (lambda folder: tagger(folder, channels=4), "takes N × 448 × 448 × 4 instead of"),
    ],
)
def test_unusable_folders_are_rejected(tmp_path, harm, words):
    harm(tagger(tmp_path))
    with pytest.raises(UserError, match=words):
        OnnxTagger(tmp_path, TagSettings())


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    import sys

    folder = tagger(tmp_path)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="pip install onnxruntime"):
        OnnxTagger(folder, TagSettings())
