"""Whose folders people choose: companions of pictures, kohya projects, names with numbers, files that nobody reads."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest
from lora_workbench.training.data import folders
from lora_workbench.training.data.dataset import Dataset
from lora_workbench.training.data.scan import folder_fingerprint, scan_folder, scan_project
from lora_workbench.training.errors import UserError
from PIL import Image


def make(root: Path, *names: str) -> Path:
    """A folder of files: pictures, and texts with their own name in them."""
    root.mkdir(parents=True, exist_ok=True)
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in (".png", ".jpg", ".webp"):
            Image.new("RGB", (16, 16)).save(path)
        else:
            path.write_text(name, encoding="utf-8")
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder whose name has no number at its end, as those of pytest have."""
    return make(tmp_path / "set")


def names(dataset: Dataset) -> list[str]:
    assert dataset.root
    return [picture.path.relative_to(dataset.root).as_posix() for picture in dataset.pictures]


# Captions by stem: sd-scripts #2087, kohya_ss #932


@pytest.mark.parametrize(
    ("picture", "caption"),
    [
        ("a.jpg", "a.jpg.txt"),
        ("a.JPG", "A.TXT"),
        ("Cat.png", "cat.txt"),
        ("a.png", "A.caption"),
        ("a.jpg", "a.JPG.caption"),
        (unicodedata.normalize("NFC", "schön.png"), unicodedata.normalize("NFD", "schön.txt")),
        (unicodedata.normalize("NFD", "が.png"), unicodedata.normalize("NFC", "が.txt")),
        ("STRASSE.png", "straße.txt"),
        ("a.b.png", "a.b.txt"),
    ],
)
def test_captions_pair_by_stem(root: Path, picture: str, caption: str) -> None:
    dataset = scan_folder(make(root, picture, caption))
    assert dataset.pictures[0].caption == caption and dataset.notes == ()


def test_an_exact_name_comes_before_one_that_is_alike(root: Path) -> None:
    make(root, "a.png", "a.txt", "A.txt", "b.png", "b.png.txt", "B.txt", "c.png", "c.jpg", "c.txt", "c.jpg.txt")
    if len(list(root.iterdir())) < 10:
        pytest.skip("this file system takes a.txt and A.txt for one file")
    found = {picture.path.name: picture.caption for picture in scan_folder(root).pictures}
    assert found == {"a.png": "a.txt", "b.png": "b.png.txt", "c.png": "c.txt", "c.jpg": "c.txt"}


def test_another_pictures_own_caption_is_not_taken(root: Path) -> None:
    make(root, "a.png", "A.png", "a.txt")
    if len(list(root.iterdir())) < 3:
        pytest.skip("this file system takes a.png and A.png for one file")
    found = {picture.path.name: picture.caption for picture in scan_folder(root).pictures}
    assert found == {"a.png": "a.txt", "A.png": ""}


def test_what_nobody_reads_is_counted_and_named(root: Path) -> None:
    make(root, "a.png", "a.txt", "a.caption", "a.json", "notes.txt", "b.mp4", "c.mp4", "deep/d.psd", "Thumbs.db")
    dataset = scan_folder(root)
    (note,) = dataset.notes
    assert note.startswith("Not read: 2 .mp4, 1 .txt, 1 .psd (b.mp4, c.mp4, notes.txt, …).")
    assert "Name each caption as its picture." in note


def test_a_format_without_its_plugin_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lora_workbench.training.data import companions, images

    monkeypatch.setattr(companions, "picture_suffixes", lambda: frozenset(images.IMAGE_SUFFIXES))
    dataset = scan_folder(make(root, "a.png", "b.heic", "c.HEIC", "d.jxl"))
    assert dataset.notes == (
        "Not read: 2 .heic, 1 .jxl (b.heic, c.HEIC, d.jxl). Install pillow-heif and pillow-jxl-plugin to read them, or "
        "convert them to PNG.",
    )


# Masks and control pictures of other trainers: OneTrainer PR #1718


@pytest.mark.parametrize(
    "mask",
    [
        "a_mask.png", "a-masklabel.png", "A_MASK.PNG", "mask/a.png", "masks/a.webp", "Mask/a_mask.png", "masks/A.png",
        "a-mask.png", "a_masklabel.png", "a.mask.png", "a.jpg_mask.png", "masks/a.jpg.png", "a.jpg-masklabel.png",
    ],
)
def test_a_mask_is_no_picture_and_is_remembered(root: Path, mask: str) -> None:
    dataset = scan_folder(make(root, "a.jpg", "b.jpg", mask))
    assert [(p.path.name, p.mask and p.mask.name) for p in dataset.pictures] == [
        ("a.jpg", Path(mask).name), ("b.jpg", None)]  # fmt: skip
    assert dataset.notes == ("1 mask, used if Loss Mask follows.",)


@pytest.mark.parametrize(
    "control",
    [
        "a-condlabel.png", "a_control.png", "control/a.png", "conditioning/a.jpg", "controls/a_0.png",
        "a_condlabel.png", "a_control_0.png", "control_images/a.png",
    ],
)
def test_a_control_picture_is_no_picture_and_is_remembered(root: Path, control: str) -> None:
    dataset = scan_folder(make(root, "a.jpg", control))
    (picture,) = dataset.pictures
    assert [path.name for path in picture.controls] == [Path(control).name] and picture.mask is None
    assert dataset.notes == ("1 control picture, not trained.",)


def test_several_control_pictures_and_a_mask(root: Path) -> None:
    make(root, "a.jpg", "a-masklabel.png", "a-condlabel.png", "control/a_0.png", "control/a_1.png")
    (picture,) = scan_folder(root).pictures
    assert [path.name for path in picture.controls] == ["a-condlabel.png", "a_0.png", "a_1.png"]
    assert picture.mask and picture.mask.name == "a-masklabel.png"


@pytest.mark.parametrize("mask", ["mask/5_zorp/a.png", "5_zorp/mask/a.png", "5_zorp/masks/a.png"])
def test_mask_folders_mirror_the_pictures(root: Path, mask: str) -> None:
    dataset = scan_folder(make(root, "5_zorp/a.png", "3_hat/b.png", mask))
    assert names(dataset) == ["3_hat/b.png", "5_zorp/a.png"]
    assert [bool(picture.mask) for picture in dataset.pictures] == [False, True]


def test_a_mask_folder_beside_the_pictures(root: Path) -> None:
    make(root, "images/5_zorp/a.png", "images/plain/b.png", "masks/5_zorp/a.png", "masks/c.png", "masks/b.png")
    dataset = scan_folder(root)
    assert [(p.path.stem, bool(p.mask)) for p in dataset.pictures] == [("a", True), ("b", True)]
    assert "1 file of masks or control pictures that fit no picture, or several (c.png)." in dataset.notes


def test_a_mask_folder_named_after_the_pictures(root: Path) -> None:
    make(root, "zorp/a.png", "zorp_masks/a.png", "hat/a.png", "carnival_mask/a.png")
    dataset = scan_folder(root)
    assert [(p.path.parent.name, bool(p.mask)) for p in dataset.pictures] == [
        ("carnival_mask", False), ("hat", False), ("zorp", True)]  # fmt: skip


def test_a_mask_that_fits_several_pictures_is_given_to_none(root: Path) -> None:
    dataset = scan_folder(make(root, "5_zorp/1.png", "3_hat/1.png", "3_hat/2.png", "mask/1.png", "mask/2.png"))
    assert [(p.path.parent.name, bool(p.mask)) for p in dataset.pictures] == [
        ("3_hat", False), ("3_hat", True), ("5_zorp", False)]  # fmt: skip
    assert "1 file of masks or control pictures that fit no picture, or several (1.png)." in dataset.notes


def test_a_second_mask_is_said(root: Path) -> None:
    dataset = scan_folder(make(root, "a.png", "a-masklabel.png", "a_mask.png"))
    assert dataset.pictures[0].mask and "Not read: 1 .png (a_mask.png)." in dataset.notes


def test_a_folder_of_masks_as_a_subject_stays_one(root: Path) -> None:
    dataset = scan_folder(make(root, "faces/a.png", "masks/venice.png", "10_mask/paper.png", "carnival_mask.png"))
    assert names(dataset) == ["10_mask/paper.png", "carnival_mask.png", "faces/a.png", "masks/venice.png"]
    assert names(scan_folder(root / "masks")) == ["venice.png"]


def test_a_mask_label_without_its_picture_is_left_out_and_named(root: Path) -> None:
    dataset = scan_folder(make(root, "a.png", "gone-masklabel.png", "gone-condlabel.png"))
    assert names(dataset) == ["a.png"]
    (note,) = dataset.notes
    assert note.startswith("2 files of masks or control pictures that fit no picture, or several (gone-condlabel.png")


# kohya projects: kohya_ss #547, #1849


def test_a_project_gives_its_pictures_and_its_regularization_pictures(root: Path) -> None:
    root = make(
        root / "zorp", "img/20_zorp woman/a.png", "reg/1_woman/r.png", "reg/1_woman/s.png", "log/x.png",
        "model/sample/step_1.png", "model/last.safetensors", "cover.png",
    )  # fmt: skip
    learned, kept = scan_project(root, trigger="zorp")
    assert names(learned) == ["img/20_zorp woman/a.png"] and names(kept) == ["reg/1_woman/r.png", "reg/1_woman/s.png"]
    (picture,) = learned.pictures
    assert (picture.repeats, picture.concept, picture.caption) == (20, "20_zorp woman", "zorp woman")
    assert [(p.caption, p.repeats, p.concept, p.is_regularization) for p in kept.pictures] == [
        ("woman", 1, "reg/1_woman", False)] * 2  # fmt: skip
    assert (learned.trigger, kept.trigger, learned.name) == ("zorp", "", "zorp")
    assert learned.notes == (
        "zorp is a kohya project: 1 picture to learn, 2 pictures for regularization at the second output, left out: "
        "log, model, its own files.",
        "Repeats: 20_zorp woman × 20, 1_woman × 1.",
    )
    before = folder_fingerprint(root)
    make(root, "model/sample/step_2.png")
    assert folder_fingerprint(root) == before
    make(root, "reg/1_woman/t.png")
    assert folder_fingerprint(root) != before


@pytest.mark.parametrize("inside", ["reg/log", "reg/1_woman/sample", "reg/model"])
def test_what_a_run_left_in_reg_changes_nothing(root: Path, inside: str) -> None:
    make(root, "img/10_zorp/a.png", "reg/1_woman/b.png", f"{inside}/notes.txt")
    learned, kept = scan_project(root)
    assert [p.path.stem for p in learned.pictures] == ["a"] and [p.path.stem for p in kept.pictures] == ["b"]


@pytest.mark.parametrize(
    "layout",
    [["img", "reg"], ["IMG", "Reg"], ["img", "log"], ["img", "model"], ["images", "reg"], ["image", "regularization"]],
)
def test_a_part_of_a_project_is_enough(root: Path, layout: list[str]) -> None:
    img, other = layout
    make(root, f"{img}/10_zorp/a.png", f"{other}/1_thing/b.png")
    learned, kept = scan_project(root)
    assert [p.path.stem for p in learned.pictures] == ["a"]
    assert [p.path.stem for p in kept.pictures] == (["b"] if "reg" in other.lower() else [])


def test_repeats_folders_beside_what_a_run_leaves(root: Path) -> None:
    make(root, "10_zorp/a.png", "reg/1_thing/b.png", "model/sample/c.png", "log/d.png", "more/e.png", "f.png")
    learned, kept = scan_project(root)
    assert names(learned) == ["10_zorp/a.png", "f.png", "more/e.png"] and names(kept) == ["reg/1_thing/b.png"]


def test_projects_below_the_folder(root: Path) -> None:
    make(root, "one/img/10_zorp/a.png", "one/log/x.png", "two/img/5_quib/b.png", "two/reg/1_thing/c.png")
    learned, kept = scan_project(root)
    assert names(learned) == ["one/img/10_zorp/a.png", "two/img/5_quib/b.png"]
    assert names(kept) == ["two/reg/1_thing/c.png"] and len(learned.notes) == 3


def test_a_mask_folder_of_a_project(root: Path) -> None:
    make(root, "img/10_zorp/a.png", "mask/10_zorp/a.png", "log/x.png")
    (picture,) = scan_folder(root).pictures
    assert picture.mask == root / "mask" / "10_zorp" / "a.png"


def test_folders_that_are_no_project(root: Path) -> None:
    make(root, "reg/a.png", "model/b.png", "img/c.png")
    assert names(scan_folder(root / "reg")) == ["a.png"], "the root's own name says nothing"
    make(root / "fashion", "model/a.png", "street/b.png", "10_dress/c.png", "images/d.png")
    assert len(names(scan_folder(root / "fashion"))) == 4
    assert scan_project(root / "fashion")[1].pictures == ()


def test_a_project_without_pictures_says_what_it_is(root: Path) -> None:
    make(root / "zorp", "img/10_zorp/notes.txt", "reg/1_thing/a.png")
    with pytest.raises(UserError, match="There are no pictures in .*zorp.*is a kohya project: 0 pictures to learn"):
        scan_folder(root / "zorp")


# Names that look like repeats: kohya_ss #983, #216


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("10_zorp", "Repeats: 10_zorp × 10."),
        ("0.5_style", "Repeats: 0.5_style × 0.5."),
        ("5_", "Repeats: 5_ × 5."),
        ("99_PANA", "Repeats: 99_PANA × 99."),
        ("10_猫", "Repeats: 10_猫 × 10."),
        *((name, f"Repeats: {name} × {n}. Rename {name} if the number is not meant as repeats.") for name, n in [
            ("2024_summer", 2024), ("100_PANA", 100), ("01_portraits", 1), ("12_25", 12), ("80_s", 80), ("35_mm", 35),
        ]),
        *((name, f"Shown once per epoch: {name}. Rename to 20_name for 20 repeats.") for name in [
            "20-zorp", "20 zorp", "20x zorp", "10zorp", "x20_zorp", "100CANON", "200-zorp", "20240101_trip", "zorp_20",
            "zorp-20", "zorp (20)", "zorp_x20", "zorp_20x", "zorp_150", "zorp_10_repeats",
        ]),
        *((name, "") for name in ["1_zorp", "1girl", "zorp_2024", "zorp", "DSC_0042", "zorp_v2", "set_2"]),
    ],
)  # fmt: skip
def test_names_with_numbers_are_said_with_the_repeats_used(root: Path, name: str, said: str) -> None:
    below = scan_folder(make(root / "set", f"{name}/a.png"))
    itself = scan_folder(root / "set" / name)
    assert below.notes == itself.notes == ((said,) if said else ())
    assert below.pictures[0].repeats == itself.pictures[0].repeats


def test_names_with_numbers_are_two_lines_with_the_doubtful_ones_first(root: Path) -> None:
    make(root, *(f"{n}_zorp/a.png" for n in range(1, 9)), "2024_summer/a.png", "zorp_20/a.png", "300_empty/x.txt")
    assert scan_folder(root).notes[:2] == (
        "Repeats: 2024_summer × 2024, 1_zorp × 1, 2_zorp × 2 and 6 more. Rename 2024_summer if the number is not meant "
        "as repeats.",
        "Shown once per epoch: zorp_20. Rename to 20_name for 20 repeats.",
    )


# Names in another encoding: ComfyUI #11907 names the error


@pytest.mark.skipif(os.name == "nt" or os.uname().sysname == "Darwin", reason="names are Unicode here")
def test_names_that_are_not_utf8_are_named_with_the_way_out(root: Path) -> None:
    make(root, "good.png")
    gbk = os.fsencode(root) + b"/" + "狐狸".encode("gbk")
    os.mkdir(gbk)
    for path in (gbk + b"/a.png", os.fsencode(root) + b"/" + "狐女".encode("gbk") + b".png"):
        Image.new("RGB", (16, 16)).save(os.fsdecode(path), format="PNG")
    dataset = scan_folder(root)
    assert names(dataset) == ["good.png"]
    (sentence,) = dataset.skipped
    assert r"'\xba\xfc\xc0\xea'" in sentence and ".png'" in sentence and "not UTF-8" in sentence
    assert "convmv -f gbk -t utf-8 -r --notest" in sentence
    (dataset.describe() + folder_fingerprint(root)).encode("utf-8")
    with pytest.raises(UserError, match="not UTF-8") as told:
        scan_folder(Path(os.fsdecode(gbk)))
    str(told.value).encode("utf-8")
    inside = Path(os.fsdecode(gbk)) / "set"
    inside.mkdir()
    with pytest.raises(UserError) as told:
        scan_folder(inside)
    assert r"'\xba\xfc\xc0\xea' in" in str(told.value), "the folder to rename is named, not the one in it"
    # In the list of folders it has a name that can be sent, and choosing it says the same.
    listed = folders.dataset_folders([root])
    assert listed == [r"\xba\xfc\xc0\xea"]
    with pytest.raises(UserError, match="not UTF-8"):
        folders.resolve_dataset_folder(listed[0], [root])


def test_a_placeholder_of_a_template_is_said() -> None:
    assert folders.missing_folder("my_character") == "Choose your folder: my_character is a placeholder."
    assert "my_character/10_x is a placeholder" in folders.missing_folder("my_character/10_x")
    assert "'mine' does not exist" in folders.missing_folder("mine")


@pytest.mark.skipif(os.name == "nt", reason="such a path is right there")
def test_a_path_of_a_windows_disk_is_said(root: Path) -> None:
    with pytest.raises(UserError, match="is a path on a disk of Windows"):
        folders.resolve_dataset_folder("C:\\Users\\me\\zorp", [root])
