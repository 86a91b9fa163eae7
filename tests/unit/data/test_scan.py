"""A folder becomes a dataset according to its names and caption files; other files are ignored."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from lora_workbench.training.data import scan
from lora_workbench.training.data.dataset import Dataset
from lora_workbench.training.errors import SettingError, UserError
from PIL import Image


def _picture(
    path: Path, caption: str | bytes | None = None, end: str = ".txt", size: tuple[int, int] = (20, 10)
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 90, 90)).save(path)
    if caption is not None:
        data = caption if isinstance(caption, bytes) else caption.encode()
        path.with_suffix(end).write_bytes(data)
    return path


def _names(dataset: Dataset) -> list[str]:
    assert dataset.root is not None
    return [picture.path.relative_to(dataset.root).as_posix() for picture in dataset.pictures]


def _caption(root: Path, **settings: str) -> str:
    (picture,) = scan.scan_folder(root, **settings).pictures
    return picture.caption


def test_kohya_folders(tmp_path: Path) -> None:
    root = tmp_path / "set"
    _picture(root / "a.png")
    _picture(root / "10_my_cat" / "b.png")
    _picture(root / "10_my_cat" / "close" / "c.png")
    _picture(root / "10_my_cat" / "close" / "3_eyes" / "d.png")
    _picture(root / "plain" / "e.png")
    _picture(root / "5_" / "f.png")
    dataset = scan.scan_folder(root)
    found = {p.path.name: (p.repeats, p.class_word, p.concept, p.caption) for p in dataset.pictures}
    assert found == {
        "a.png": (1, "", "set", ""),
        "b.png": (10, "my_cat", "10_my_cat", "my_cat"),
        "c.png": (10, "my_cat", "10_my_cat/close", "my_cat"),
        "d.png": (3, "eyes", "10_my_cat/close/3_eyes", "eyes"),
        "e.png": (1, "", "plain", ""),
        "f.png": (5, "", "5_", ""),
    }
    assert (dataset.name, dataset.root, dataset.skipped) == ("set", root, ())
    assert dataset.pictures[0].size == (20, 10) and dataset.images_per_epoch == 30


def test_the_name_of_the_root_counts(tmp_path: Path) -> None:
    root = tmp_path / "4_red_car"
    _picture(root / "a.png")
    _picture(root / "sub" / "b.png")
    dataset = scan.scan_folder(root, trigger="  zq  car ", background=(1, 2, 3))
    assert [(p.repeats, p.class_word, p.concept) for p in dataset.pictures] == [
        (4, "red_car", "4_red_car"),
        (4, "red_car", "sub"),
    ]
    assert (dataset.name, dataset.trigger, dataset.background) == ("red_car", "zq car", (1, 2, 3))


def test_a_date_or_a_word_is_not_a_count(tmp_path: Path) -> None:
    for name in ("20240501_trip", "1girl", "x_10_y", "10"):
        _picture(tmp_path / name / "a.png")
    assert {picture.repeats for picture in scan.scan_folder(tmp_path).pictures} == {1}


def test_repeats_may_be_fractions(tmp_path: Path) -> None:
    for name in ("0.5_zorp", "1.25_hat"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (64, 64)).save(tmp_path / name / "a.png")
    found = {picture.class_word: picture.repeats for picture in scan.scan_folder(tmp_path).pictures}
    assert found == {"zorp": 0.5, "hat": 1.25}


def test_a_folder_with_zero_repeats_is_skipped_and_named(tmp_path: Path) -> None:
    _picture(tmp_path / "0_off" / "a.png")
    _picture(tmp_path / "0_off" / "b.png")
    _picture(tmp_path / "c.png")
    dataset = scan.scan_folder(tmp_path)
    assert _names(dataset) == ["c.png"]
    assert len(dataset.skipped) == 1 and "0_off was left out with its 2 pictures" in dataset.skipped[0]


def test_system_files_are_ignored(tmp_path: Path) -> None:
    for name in (".hidden.png", "._a.png", ".git/b.png", "__MACOSX/c.png", "@eaDir/d.png", "e.png"):
        _picture(tmp_path / name)
    for name in ("Thumbs.db", "desktop.ini", ".notes.txt"):
        (tmp_path / name).write_text("no caption")
    dataset = scan.scan_folder(tmp_path)
    assert _names(dataset) == ["e.png"] and dataset.skipped == () and dataset.pictures[0].caption == ""
    assert dataset.notes == ()


def test_natural_order(tmp_path: Path) -> None:
    names = ["Img1.png", "img2.png", "IMG10.png", "b/x9.png", "b/x10.png", "b2/a.png", "b10/a.png", "²/1.png"]
    for name in names:
        _picture(tmp_path / name)
    order = ["b/x9.png", "b/x10.png", "b2/a.png", "b10/a.png", "Img1.png", "img2.png", "IMG10.png", "²/1.png"]
    assert _names(scan.scan_folder(tmp_path)) == order


def test_suffixes_in_capitals(tmp_path: Path) -> None:
    _picture(tmp_path / "A.PNG", "big", end=".TXT")
    assert _caption(tmp_path) == "big"


@pytest.mark.parametrize(
    ("data", "caption"),
    [
        (b"one, two", "one, two"),
        (b"\xef\xbb\xbfwith a BOM\r\n", "with a BOM"),
        (b"first line\r\n\r\n  second line \nthird", "first line\nsecond line\nthird"),
        ("ein Häuschen, 猫".encode(), "ein Häuschen, 猫"),
        (b" \r\n\t\n", "class_word"),
        (b"", "class_word"),
    ],
)
def test_the_text_of_a_caption_file(tmp_path: Path, data: bytes, caption: str) -> None:
    _picture(tmp_path / "1_class_word" / "a.png", data)
    assert _caption(tmp_path) == caption


def test_txt_takes_precedence_over_caption(tmp_path: Path) -> None:
    path = _picture(tmp_path / "a.png", "from caption", end=".caption")
    assert _caption(tmp_path) == "from caption"
    path.with_suffix(".txt").write_text("from txt")
    assert _caption(tmp_path) == "from txt"


def test_two_pictures_may_share_a_caption(tmp_path: Path) -> None:
    _picture(tmp_path / "a.png", "both")
    _picture(tmp_path / "a.jpg")
    assert [picture.caption for picture in scan.scan_folder(tmp_path).pictures] == ["both", "both"]


@pytest.mark.parametrize(
    ("caption", "trigger", "result"),
    [
        ("a cat", "sks", "sks, a cat"),
        ("a SKS cat", "sks", "a SKS cat"),
        ("cat,sks", "sks", "cat,sks"),
        ("a photo of sks.", "sks", "a photo of sks."),
        ("sksy cat, my-sks", "sks", "sksy cat, my-sks"),
        ("sksy cat, mysks", "sks", "sks, sksy cat, mysks"),
        ("a red sks  dog", "sks dog", "a red sks  dog"),
        ("a red sks dog", "SKS dog", "a red sks dog"),
        ("a c++ cat", "c++", "a c++ cat"),
        ("", "sks", "sks"),
        ("a cat", "", "a cat"),
        ("a cat", "  ", "a cat"),
    ],
)
def test_the_trigger_is_added_unless_present(tmp_path: Path, caption: str, trigger: str, result: str) -> None:
    _picture(tmp_path / "a.png", caption)
    assert _caption(tmp_path, trigger=trigger) == result


def test_unreadable_headers_are_named(tmp_path: Path) -> None:
    _picture(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"this is no picture")
    (tmp_path / "empty.jpg").write_bytes(b"")
    dataset = scan.scan_folder(tmp_path)
    assert _names(dataset) == ["good.png"]
    assert [name for name in ("bad.png", "empty.jpg") if name in " ".join(dataset.skipped)] == ["bad.png", "empty.jpg"]


def test_folders_without_usable_pictures_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no folder .*gone"):
        scan.scan_folder(tmp_path / "gone")
    with pytest.raises(UserError, match=r"a\.png is a file"):
        scan.scan_folder(_picture(tmp_path / "a.png"))
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "a.psd").write_bytes(b"")
    with pytest.raises(UserError, match=r"no pictures in .*empty.*\.png, \.jpg.*Not read: 1 \.psd"):
        scan.scan_folder(empty)
    for number in range(5):
        (empty / f"{number}.png").write_bytes(b"x")
    with pytest.raises(UserError, match=r"No picture in .*0\.png.*1\.png.*2\.png.*And 2 more"):
        scan.scan_folder(empty)


def _link(link: Path, target: Path, folder: bool = False) -> None:
    try:
        link.symlink_to(target, target_is_directory=folder)
    except OSError:
        pytest.skip("this system does not allow links")


def test_links_are_followed_once(tmp_path: Path) -> None:
    root = tmp_path / "set"
    _picture(root / "zoo" / "a.png")
    _picture(tmp_path / "elsewhere" / "b.png")
    _link(root / "10_outside", tmp_path / "elsewhere", folder=True)
    _link(root / "again", root / "zoo", folder=True)
    _link(root / "zoo" / "loop", root, folder=True)
    _link(root / "c.png", root / "nowhere.png")
    dataset = scan.scan_folder(root)
    assert _names(dataset) == ["10_outside/b.png", "zoo/a.png"] and dataset.pictures[0].repeats == 10
    assert len(dataset.skipped) == 3
    for word in ("again", "loop", "c.png"):
        assert any(word in sentence for sentence in dataset.skipped)


def test_fingerprint_of_a_folder(tmp_path: Path) -> None:
    root = tmp_path / "set"
    assert scan.folder_fingerprint(root) == "missing"
    path = _picture(root / "1_x" / "a.png", "caption")
    seen = [scan.folder_fingerprint(root)]
    (root / "readme.md").write_text("no part of it")
    (root / "1_x" / "other.txt").write_text("nobody's caption")
    assert scan.folder_fingerprint(root) == seen[0] == scan.folder_fingerprint(root)

    def changed() -> None:
        seen.append(scan.folder_fingerprint(root))
        assert len(set(seen)) == len(seen)

    path.with_suffix(".txt").write_text("another caption")
    changed()
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
    changed()
    _picture(root / "b.png")
    changed()
    (root / "1_x").rename(root / "2_x")
    changed()
    (root / "2_x" / "a.txt").unlink()
    changed()
    for name in ("a.json", "a_mask.png", "a-condlabel.png", "metadata.jsonl"):
        (root / "2_x" / name).write_bytes(b"1")
        changed()


def test_fingerprint_of_a_picture_follows_its_file(tmp_path: Path) -> None:
    path = _picture(tmp_path / "a.png")
    before = scan.scan_folder(tmp_path).pictures[0].fingerprint
    stat = path.stat()
    assert before == f"{stat.st_size}-{stat.st_mtime_ns}"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no FIFOs")
def test_a_fifo_is_left_out_or_named(tmp_path: Path) -> None:
    _picture(tmp_path / "a.png", "a cat")
    os.mkfifo(tmp_path / "b.png")
    dataset = scan.scan_folder(tmp_path)
    assert [picture.path.name for picture in dataset.pictures] == ["a.png"]
    assert len(dataset.skipped) == 1 and "b.png" in dataset.skipped[0] and "regular file" in dataset.skipped[0]
    (tmp_path / "a.txt").unlink()
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(UserError, match=r"a\.txt cannot be read \(it is not a regular file\)\. Replace or remove it"):
        scan.scan_folder(tmp_path)


@pytest.mark.parametrize("letter", ["a", "猫", "🐈"])
def test_a_caption_of_megabytes_is_named_and_not_read_through(
    letter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _picture(tmp_path / "a.png", letter * 20_000)
    _picture(tmp_path / "b.png", letter * 20_001)
    _picture(tmp_path / "c.png", letter * 3_000_000)
    read: list[int] = []
    plain = io.BufferedReader.read
    opened = Path.open

    class Counted(io.BufferedReader):
        def read(self, size: int | None = -1) -> bytes:
            data = plain(self, size)
            read.append(len(data))
            return data

    def counting(self: Path, mode: str = "r", *more: object, **named: object) -> object:
        is_caption = mode == "rb" and self.suffix == ".txt"
        return Counted(io.FileIO(self)) if is_caption else opened(self, mode, *more, **named)

    monkeypatch.setattr(Path, "open", counting)
    dataset = scan.scan_folder(tmp_path)
    assert [picture.caption for picture in dataset.pictures] == [letter * 20_000]
    assert [name for name in ("b.txt", "c.txt") if name in " ".join(dataset.skipped)] == ["b.txt", "c.txt"]
    assert "more than 20,000 characters" in dataset.skipped[0] and max(read) < 100_000


def test_another_ending_of_captions_comes_first(tmp_path: Path) -> None:
    for name, color in (("a", "red"), ("b", "blue"), ("c", "teal")):
        Image.new("RGB", (64, 64), color).save(tmp_path / f"{name}.png")
    (tmp_path / "a.txt").write_text("a sentence", encoding="utf-8")
    (tmp_path / "a.Tags").write_text("tags", encoding="utf-8")
    (tmp_path / "b.txt").write_text("b sentence", encoding="utf-8")
    (tmp_path / "c.png.tags").write_text("c tags", encoding="utf-8")

    def captions(**more: str) -> list[str]:
        return [picture.caption for picture in scan.scan_project(tmp_path, **more)[0].pictures]

    assert captions() == ["a sentence", "b sentence", ""]
    for ending in (".tags", "tags", " .TAGS "):
        assert captions(caption_extension=ending) == ["tags", "b sentence", "c tags"]
    plain, other = (scan.folder_fingerprint(tmp_path, ending) for ending in ("", "tags"))
    (tmp_path / "a.Tags").write_text("more tags", encoding="utf-8")
    assert scan.folder_fingerprint(tmp_path, "tags") != other and scan.folder_fingerprint(tmp_path) == plain
    assert not any("tags" in note.lower() for note in scan.scan_project(tmp_path, caption_extension="tags")[0].notes)


@pytest.mark.parametrize("ending", [".png", "JPG", "..", ".a b", "a/b", "."])
def test_an_ending_that_no_caption_has_is_refused(ending: str) -> None:
    with pytest.raises(SettingError, match="caption extension is .* Enter one such as"):
        scan.LoadSettings(caption_extension=ending)
    scan.LoadSettings(caption_extension="tags")
