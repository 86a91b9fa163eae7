"""Captions in every encoding, in .json files and in tables."""

from __future__ import annotations

import json
import random
import sys
import unicodedata
from pathlib import Path

import pytest
from lora_workbench.training.data.caption_files import decode_all
from lora_workbench.training.data.dataset import Dataset
from lora_workbench.training.data.scan import scan_folder
from lora_workbench.training.errors import UserError
from PIL import Image


def folder(root: Path, captions: dict[str, bytes | str | None], end: str = ".txt") -> Path:
    """A folder of pictures, each with a caption."""
    root.mkdir(parents=True, exist_ok=True)
    for name, caption in captions.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16)).save(path)
        if caption is not None:
            path.with_suffix(end).write_bytes(caption if isinstance(caption, bytes) else caption.encode())
    return root


def captions(dataset: Dataset) -> list[str]:
    return [picture.caption for picture in dataset.pictures]


# ai-toolkit, kohya_ss and others only read UTF-8; people's old captions are in the encoding of their Windows.
WRITTEN = {
    "gbk": (["一个女孩，蓝色头发，站在海边", "1girl, 白色连衣裙, 微笑", "初音未来", "zorp，一只红色的狐狸"], "GBK"),
    "shift_jis": (["青い髪の女の子、海辺に立っている", "1girl, 白いドレス", "ネコ", "猫"], "Shift-JIS"),
    "big5": (["一個女孩，藍色頭髮，站在海邊", "1girl, 白色連衣裙", "女孩"], "Big5"),
    "euc_kr": (["파란 머리의 소녀가 바닷가에 서 있다"], "EUC-KR"),
    "cp1252": (
        ["schön", "une fille à la plage, été", "café, red hair", "“zorp” – a creature’s portrait", "señorita, ÜBER",
         "it’s a girl", "“quoted”, a – b…"],
        "Windows-1252",
    ),
    "cp1251": (["девушка с синими волосами на берегу моря", "zorp, кошка"], "Windows-1251"),
    "cp1253": (["ένα κορίτσι με μπλε μαλλιά στην παραλία"], "Windows-1253"),
    "utf-16": (["a cat, 猫", "猫", "cat"], "UTF-16"),
    "utf-16-le": (["a cat, 猫", "cat"], "UTF-16"),
    "utf-16-be": (["a cat, 猫", "cat"], "UTF-16"),
    "utf-32": (["cat"], "UTF-32"),
}


@pytest.mark.parametrize("encoding", WRITTEN)
def test_other_encodings_are_detected_alone_and_together(tmp_path: Path, encoding: str) -> None:
    texts, name = WRITTEN[encoding]
    for number, text in enumerate(texts):
        alone = scan_folder(folder(tmp_path / str(number), {"a.png": text.encode(encoding)}))
        assert captions(alone) == [text]
        assert len(alone.notes) == 1 and "1 caption was read as" in alone.notes[0] and "a.txt" in alone.notes[0]
    together = folder(tmp_path / "all", {f"{n}.png": text.encode(encoding) for n, text in enumerate(texts)})
    folder(together, {"utf8.png": "ein Häuschen, 猫"})
    dataset = scan_folder(together)
    assert captions(dataset) == [*texts, "ein Häuschen, 猫"]
    assert len(dataset.notes) == 1 and f"read as {name} (0.txt" in dataset.notes[0]


@pytest.mark.parametrize(
    ("most", "few"),
    [
        (("gbk", "GBK"), ("cp1252", "Windows-1252")),
        (("gbk", "GBK"), ("shift_jis", "Shift-JIS")),
        (("shift_jis", "Shift-JIS"), ("gbk", "GBK")),
        (("cp1251", "Windows-1251"), ("gbk", "GBK")),
    ],
)
def test_each_encoding_of_a_folder_is_said(tmp_path: Path, most: tuple[str, str], few: tuple[str, str]) -> None:
    texts = {f"{number}.png": (WRITTEN[most[0]][0][0], most[0]) for number in range(5)}
    texts["z.png"] = (WRITTEN[few[0]][0][0] + ", été" * (few[0] == "cp1252"), few[0])
    dataset = scan_folder(folder(tmp_path, {name: text.encode(encoding) for name, (text, encoding) in texts.items()}))
    assert captions(dataset) == [text for text, _ in texts.values()]
    assert [note.split(" (")[0] for note in dataset.notes] == [
        f"5 captions were read as {most[1]}", f"1 caption was read as {few[1]}"]  # fmt: skip


def test_what_cannot_be_told_is_an_error_that_lists_every_file(tmp_path: Path) -> None:
    damaged = "猫が好き".encode()[:-1]
    # 319: its bytes are UTF-16 too, of characters that no caption has.
    captions = {f"{n}.png": random.Random(seed).randbytes(300) for n, seed in enumerate((0, 1, 2, 3, 319))}
    captions |= {"bom.png": b"\xef\xbb\xbfab\xff", "cut.png": damaged, "zero.png": "ä".encode() + b"\0"}
    captions |= {"good.png": "a cat", "gbk.png": "一个女孩，蓝色头发，站在海边".encode("gbk")}
    with pytest.raises(UserError, match="The encoding of 8 captions cannot be told. Save as UTF-8") as told:
        scan_folder(folder(tmp_path, captions))
    listed = [Path(line).stem for line in str(told.value).splitlines()[1:]]
    assert sorted(listed) == ["0", "1", "2", "3", "4", "bom", "cut", "zero"]


def test_a_host_without_the_detector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "charset_normalizer", None)
    assert decode_all({Path("a.txt"): "cat".encode("utf-16")})[0] == {Path("a.txt"): "cat"}
    with pytest.raises(UserError, match="The encoding of 1 caption cannot be told"):
        scan_folder(folder(tmp_path, {"a.png": "schön".encode("cp1252")}))


def test_a_long_caption_in_another_encoding_is_left_out(tmp_path: Path) -> None:
    long = "一个女孩，蓝色头发，站在海边" * 1500
    dataset = scan_folder(folder(tmp_path, {"a.png": long.encode("gbk"), "b.png": "a cat"}))
    assert captions(dataset) == ["a cat"] and "more than 20,000 characters" in dataset.skipped[0]


# ai-toolkit PR #732
def test_a_caption_that_is_json_is_kept_to_the_letter(tmp_path: Path) -> None:
    text = json.dumps({"subject": "  a cat\u2028on a mat ", "tags": ["a|b", "{c}"]}, indent=2, ensure_ascii=False)
    (picture,) = scan_folder(folder(tmp_path, {"a.png": f"{text}\n"}), trigger="zorp").pictures
    assert picture.caption == text


# sd-scripts #2087, kohya_ss #932
@pytest.mark.parametrize(
    ("fields", "caption"),
    [
        ({"caption": "a cat", "text": "no"}, "a cat"),
        ({"text": "a cat"}, "a cat"),
        ({"caption": ["a cat", "a pet"]}, "a cat\na pet"),
        ({"caption": None, "text": "a cat"}, "a cat"),
        ({"tags": "a cat"}, "thing"),
        (["a cat"], "thing"),
        ({"caption": {"short": "a cat"}}, "thing"),
    ],
)
def test_a_json_file_with_a_caption(tmp_path: Path, fields: object, caption: str) -> None:
    root = folder(tmp_path / "1_thing", {"a.png": json.dumps(fields)}, ".json")
    dataset = scan_folder(root)
    assert captions(dataset) == [caption]
    assert bool(dataset.notes) == (caption == "thing"), "a .json that is no caption is named as not read"
    (root / "a.txt").write_text("from text")
    assert captions(scan_folder(root)) == ["from text"]


@pytest.mark.parametrize("data", [b"{", b"\xff\xff", b"[" * 100_000, b'{"caption": "' + b"a" * (1 << 20) + b'"}', b""])
def test_a_json_file_that_is_none_is_not_read(tmp_path: Path, data: bytes) -> None:
    dataset = scan_folder(folder(tmp_path / "1_thing", {"a.png": data}, ".json"))
    assert captions(dataset) == ["thing"] and dataset.notes[-1].startswith("Not read: 1 .json (a.json)")


ROWS = [
    {"file_name": "a.png", "text": "first"},
    {"file_name": "deep/B.PNG", "caption": "second", "text": "no"},
    {"file_name": "deep\\c.png", "text": "third"},
    {"file_name": unicodedata.normalize("NFC", "schön.png"), "text": "fourth"},
    {"file_name": "own.png", "text": "no"},
    {"file_name": "gone.png", "text": "no"},
    {"text": "no"},
    {"file_name": "none.png"},
    7,
]


def test_a_table_of_hugging_face(tmp_path: Path) -> None:
    names = dict.fromkeys(["a.png", "deep/b.png", "deep/c.png", unicodedata.normalize("NFD", "schön.png"), "none.png"])
    root = folder(tmp_path / "1_thing", names | {"own.png": "own"})
    table = root / "metadata.jsonl"
    table.write_text("\n".join(map(json.dumps, ROWS)) + '\n\n{"file_name": "a', encoding="utf-8")
    dataset = scan_folder(root, trigger="zorp")
    assert captions(dataset) == [
        f"zorp, {text}" for text in ("first", "second", "third", "thing", "own", "fourth")]  # fmt: skip
    assert dataset.notes == ("5 rows of metadata.jsonl without a picture or caption.",)
    table.unlink()
    (root / "metadata.csv").write_text(
        'file_name,text\na.png,first\ndeep/b.png,"sec, ond"\ndeep/c.png,third\n', encoding="utf-8-sig"
    )
    dataset = scan_folder(root)
    assert [p.caption for p in dataset.pictures if p.path.stem in "abc"] == ["first", "sec, ond", "third"]


# The encoding of tables and .json files is detected too.
@pytest.mark.parametrize("encoding", ["gbk", "utf-16"])
def test_tables_and_json_in_other_encodings(tmp_path: Path, encoding: str) -> None:
    text = "一个女孩，蓝色头发，站在海边"
    table = folder(tmp_path / "table", {"a.png": None})
    row = json.dumps({"file_name": "a.png", "text": text}, ensure_ascii=False)
    (table / "metadata.jsonl").write_bytes(row.encode(encoding))
    fields = json.dumps({"caption": text}, ensure_ascii=False).encode(encoding)
    for root in (table, folder(tmp_path / "json", {"a.png": fields}, ".json")):
        dataset = scan_folder(root)
        assert captions(dataset) == [text]
        assert len(dataset.notes) == 1 and "was read as" in dataset.notes[0]


def test_the_table_of_a_project_is_read(tmp_path: Path) -> None:
    folder(tmp_path, {"img/1_thing/a.png": None, "log/b.png": None})
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "img/1_thing/a.png", "text": "first"}')
    assert captions(scan_folder(tmp_path)) == ["first"]


def test_a_table_of_another_form_is_not_read_and_a_long_row_is_left_out(tmp_path: Path) -> None:
    root = folder(tmp_path / "set", {"a.png": None, "b.png": None})
    for text in ("not json", '{"a": 1}', ""):
        (root / "metadata.jsonl").write_text(text)
        dataset = scan_folder(root)
        assert captions(dataset) == ["", ""] and dataset.notes == ("Not read: 1 .jsonl (metadata.jsonl).",)
    rows = [{"file_name": "a.png", "text": "x" * 20_001}, {"file_name": "b.png", "text": "fine"}]
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    dataset = scan_folder(root)
    assert captions(dataset) == ["fine"] and "more than 20,000 characters" in dataset.skipped[0]
