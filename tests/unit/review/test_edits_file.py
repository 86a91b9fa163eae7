"""Edits of the gallery: saved at once and whole, read back, never written over one another."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from lora_workbench.training.data.dataset import Dataset, Picture
from lora_workbench.training.errors import UserError
from lora_workbench.training.review.edits_file import Conflict, EditsFile, Entry, Watched, dataset_key


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    root = tmp_path / "set"
    return Dataset(tuple(Picture(root / f"{n}.png", (64, 64), f"caption {n}") for n in range(4)), root=root)


@pytest.fixture
def edits(tmp_path: Path, dataset: Dataset) -> EditsFile:
    return EditsFile(tmp_path / "edits", dataset)


def test_edits_are_read_back_and_applied(edits, dataset, tmp_path):
    assert edits.entries() == {} and edits.applied_to(dataset) == dataset
    assert edits.change("0.png", base=0, caption="new") == Entry("new", False, 1)
    edits.change("1.png", base=0, excluded=True)
    edits.change("0.png", base=1, caption="")
    again = EditsFile(tmp_path / "edits", dataset)
    assert again.entries() == {"0.png": Entry("", False, 2), "1.png": Entry(None, True, 1)}
    assert [picture.caption for picture in again.applied_to(dataset).pictures] == ["", "caption 2", "caption 3"]
    assert dataset.pictures[0].caption == "caption 0"


def test_a_second_person_is_told(edits):
    edits.change("0.png", base=0, caption="first")
    with pytest.raises(Conflict, match="changed elsewhere") as caught:
        edits.change("0.png", base=0, caption="second")
    assert caught.value.entry == Entry("first", False, 1)
    assert edits.entries()["0.png"].caption == "first"


def test_of_many_edits_all_or_none_are_saved(edits):
    edits.change("1.png", base=0, caption="mine")
    with pytest.raises(Conflict):
        edits.change_all({"0.png": Entry("a"), "1.png": Entry("b")})
    assert set(edits.entries()) == {"1.png"}
    edits.change_all({"0.png": Entry("a"), "1.png": Entry("b", revision=1)})
    assert edits.entries() == {"0.png": Entry("a", False, 1), "1.png": Entry("b", False, 2)}


def test_edits_at_the_same_time_are_all_kept(edits):
    def work(name: str) -> None:
        for revision in range(20):
            edits.change(name, base=revision, caption=f"{name} {revision}")

    threads = [threading.Thread(target=work, args=(f"{n}.png",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert edits.entries() == {f"{n}.png": Entry(f"{n}.png 19", False, 20) for n in range(4)}


def test_the_stamp_changes_with_each_edit(edits):
    stamps = {edits.stamp()}
    for revision in range(3):
        edits.change("0.png", base=revision, caption=str(revision))
        stamps.add(edits.stamp())
    assert len(stamps) == 4


def test_a_folder_keeps_its_key(dataset):
    assert dataset_key(dataset) == dataset_key(replace(dataset, pictures=dataset.pictures[:1], trigger="x"))
    assert dataset_key(dataset) != dataset_key(replace(dataset, root=dataset.root / "other"))


@pytest.mark.parametrize("text", ["{", "[]", '{"pictures": {"0.png": {"color": 1}}}', '{"pictures": 3}'])
def test_a_damaged_file_is_set_aside(edits, text):
    edits.path.parent.mkdir(parents=True)
    edits.path.write_text(text, encoding="utf-8")
    assert edits.entries() == {}
    edits.change("0.png", base=0, caption="new")
    assert json.loads(edits.path.read_text(encoding="utf-8"))["pictures"]["0.png"]["caption"] == "new"
    assert edits.path.with_suffix(".damaged").read_text(encoding="utf-8") == text
    # A second misfortune keeps the first one's file.
    edits.path.write_text("[", encoding="utf-8")
    assert edits.entries() == {}
    assert edits.path.with_suffix(".damaged").read_text(encoding="utf-8") == text
    assert edits.path.with_suffix(".damaged1").read_text(encoding="utf-8") == "["


def test_edits_that_cannot_be_opened_are_not_taken_for_none(edits, dataset):
    edits.path.mkdir(parents=True)  # whoever runs the test: a folder cannot be read as a file
    with pytest.raises(UserError, match="cannot be read"):
        edits.applied_to(dataset)
    assert edits.path.is_dir()


def test_what_cannot_be_saved_is_said(edits, dataset):
    with pytest.raises(UserError, match="Shorten it to 20000 at most"):
        edits.change("0.png", base=0, caption="x" * 20_001)
    edits.path.parent.write_text("a file where the folder should be")
    with pytest.raises(UserError, match="could not be written"):
        edits.change("0.png", base=0, caption="x")


def test_a_set_with_nothing_left_is_refused(edits, dataset):
    edits.change_all({f"{n}.png": Entry(excluded=True) for n in range(4)})
    with pytest.raises(UserError, match="Every picture of the dataset is left out"):
        edits.applied_to(dataset)


def test_a_node_runs_again_only_after_an_edit_that_it_has_not_read(tmp_path):
    watched = Watched()
    first, second = (EditsFile(tmp_path, Dataset((), name)) for name in ("first", "second"))

    def run(file: EditsFile) -> str:
        told = watched.fingerprint("5")
        watched.reads("5", file)
        return told

    told = run(first)
    assert watched.fingerprint("5") == told, "to know its dataset is no reason to run again"
    second.change("a.png", base=0, caption="another dataset's")
    assert watched.fingerprint("5") == told
    first.change("a.png", base=0, caption="edited")
    assert watched.fingerprint("5") != told
    told = run(first)
    assert watched.fingerprint("5") == told
    first.change("a.png", base=1, caption="and taken")
    first.change("a.png", base=2, caption="edited")
    assert watched.fingerprint("5") == told, "what was taken back is no edit"

    # Edited between the question and the run, and the edit taken back: what ran is not what is there now.
    told = watched.fingerprint("5")
    first.change("a.png", base=3, caption="late")
    watched.reads("5", first)
    first.change("a.png", base=4, caption="edited")
    assert watched.fingerprint("5") != told

    # Another graph whose node has the same id: edits of either are noticed.
    told = run(second)
    first.change("a.png", base=5, excluded=True)
    assert watched.fingerprint("5") != told
    assert Watched().fingerprint("5") == "", "a new server has nothing in its cache"
