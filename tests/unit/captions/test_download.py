"""Downloading a captioner: which files, how they are checked, and that a partial download is never used."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from lora_workbench.training.captions.download import download
from lora_workbench.training.errors import UserError
from lora_workbench.training.events import Cancelled, SilentSink
from support.hub import Hub, hub

TAGGER, WRITER = "someone/wd-tagger", "someone/blip"


class Watching(SilentSink):
    """Records the progress, and cancels after a number of reports."""

    def __init__(self, cancel_after: int = 10**9) -> None:
        self.seen: list[tuple[int, int]] = []
        self.cancel_after = cancel_after

    def phase(self, text: str, done: int, total: int) -> None:
        self.seen.append((done, total))

    def cancelled(self) -> bool:
        return len(self.seen) >= self.cancel_after


@pytest.fixture
def local_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with a tagger, a sentence captioner, and a pickled model that must not be opened."""
    pytest.importorskip("huggingface_hub", reason="comes with transformers, which this Python lacks")
    root = tmp_path / "hub"
    for name, size in {
        f"{TAGGER}/model.onnx": 3_000_000, f"{TAGGER}/selected_tags.csv": 100, f"{TAGGER}/config.json": 20,
        f"{TAGGER}/model.safetensors": 4000, f"{TAGGER}/model.py": 10,
        f"{WRITER}/model.safetensors": 5000, f"{WRITER}/config.json": 20, f"{WRITER}/tokenizer.json": 30,
        f"{WRITER}/pytorch_model.bin": 5000, f"{WRITER}/modeling.py": 10, f"{WRITER}/onnx/config.json": 7,
        f"{WRITER}/qformer_tokenizer/tokenizer.json": 40, f"{WRITER}/added_tokens.json": 0,
        "someone/pickled/pytorch_model.bin": 50,
    }.items():  # fmt: skip
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(os.urandom(size))
    with hub(root) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        yield running


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_which_files_are_downloaded(local_hub, tmp_path):
    sink = Watching()
    tagger = download(TAGGER, tmp_path / "LLM", sink)
    assert tagger == tmp_path / "LLM" / TAGGER
    assert names(tagger) == ["config.json", "model.onnx", "selected_tags.csv"]
    assert (tagger / "model.onnx").read_bytes() == (local_hub.root / TAGGER / "model.onnx").read_bytes()
    assert sink.seen[-1] == (2, 2) and sink.seen == sorted(sink.seen)
    writer = download(WRITER, tmp_path / "LLM", sink)
    assert names(writer) == [
        "added_tokens.json", "config.json", "model.safetensors", "qformer_tokenizer", "tokenizer.json",
    ]  # fmt: skip
    assert names(writer / "qformer_tokenizer") == ["tokenizer.json"]  # InstructBLIP cannot do without it
    assert names(tmp_path / "LLM" / "someone") == ["blip", "wd-tagger"]
    # A model that is present is not requested again.
    local_hub.asked.clear()
    assert download(f" {TAGGER} ", tmp_path / "LLM", sink) == tagger
    assert local_hub.asked == []


def test_an_interrupted_download_resumes(local_hub, tmp_path):
    root = tmp_path / "LLM"
    local_hub.cut = 1_200_000
    for _ in range(2):
        with pytest.raises(UserError, match="was interrupted .*Queue again to resume"):
            download(TAGGER, root, SilentSink())
        assert not (root / TAGGER).exists()
    local_hub.cut = 0
    whole = download(TAGGER, root, SilentSink())
    assert (whole / "model.onnx").read_bytes() == (local_hub.root / TAGGER / "model.onnx").read_bytes()
    ranges = [part for path, part in local_hub.asked if path.endswith("model.onnx")]
    assert ranges == ["", "bytes=1200000-", "bytes=2400000-"]


@pytest.mark.parametrize("after", [1, 2, 3, 4, 5])
def test_cancel(after, local_hub, tmp_path):
    """At any moment, even between a file's last byte and its final name."""
    with pytest.raises(Cancelled):
        download(TAGGER, tmp_path / "LLM", Watching(cancel_after=after))
    assert not (tmp_path / "LLM" / TAGGER).exists()
    assert download(TAGGER, tmp_path / "LLM", SilentSink()).is_dir()
    assert names(tmp_path / "LLM" / "someone") == ["wd-tagger"]


def test_files_of_two_commits_are_not_mixed(local_hub, tmp_path):
    with pytest.raises(Cancelled):
        download(TAGGER, tmp_path / "LLM", Watching(cancel_after=4))
    (part,) = (tmp_path / "LLM" / "someone").iterdir()
    part.rename(part.with_name("wd-tagger.ffffffffffff.part"))  # as if left by another commit
    local_hub.asked.clear()
    download(TAGGER, tmp_path / "LLM", SilentSink())
    assert {part for _, part in local_hub.asked} == {""}, "a file was resumed"
    assert names(tmp_path / "LLM" / "someone") == ["wd-tagger"]


def test_a_gated_model_says_what_to_do(local_hub, tmp_path):
    local_hub.gated = {"model.onnx"}
    with pytest.raises(UserError, match="agreed to its terms"):
        download(TAGGER, tmp_path / "LLM", SilentSink())


@pytest.mark.parametrize(("name", "size"), [("model.onnx", 3000000), ("selected_tags.csv", 100)])
def test_damage_is_detected(name, size, local_hub, tmp_path):
    local_hub.lie = {name}
    with pytest.raises(UserError, match=rf"{name} is incomplete or damaged: {size} of {size} bytes"):
        download(TAGGER, tmp_path / "LLM", SilentSink())
    assert not (tmp_path / "LLM" / TAGGER).exists()
    local_hub.lie = set()
    assert download(TAGGER, tmp_path / "LLM", SilentSink()).is_dir()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("blip", "is not a Hugging Face name. Use owner/name"),
        ("../LLM", "is not a Hugging Face name. Use owner/name"),
        ("someone/..", "is not a Hugging Face name. Use owner/name"),
        ("https://huggingface.co/someone/blip", "is not a Hugging Face name. Use owner/name"),
        ("someone/nothing", "There is no public model someone/nothing on http://127"),
        ("someone/pickled", "neither .safetensors nor .onnx"),
    ],
)
def test_unusable_names_and_models_are_rejected(name, words, local_hub, tmp_path):
    with pytest.raises(UserError, match=words):
        download(name, tmp_path / "LLM", SilentSink())
    assert not list((tmp_path / "LLM").rglob("*.safetensors"))


def test_offline_sends_no_request(local_hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="HF_HUB_OFFLINE forbids"):
        download(WRITER, tmp_path / "LLM", SilentSink())
    assert local_hub.asked == []


def test_no_network(tmp_path, monkeypatch):
    pytest.importorskip("huggingface_hub", reason="comes with transformers, which this Python lacks")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(UserError, match="did not answer"):
        download(WRITER, tmp_path / "LLM", SilentSink())
