"""Which pictures are held out: whole files, a share of each concept, the same in every run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lora_workbench.training.data.dataset import Dataset, Picture
from lora_workbench.training.data.split import hold_out, shared


def picture(folder: Path, name: str, concept: str, content: str = "", **more: object) -> Picture:
    path = folder / f"{concept}_{name}.png"
    path.write_text(content or f"{concept} {name}")
    return Picture(path, (8, 8), name, concept=concept, **more)  # type: ignore[arg-type]


def dataset(folder: Path) -> Dataset:
    """Ten cats at two resolutions, three dogs, one bird, and every picture as regularization too."""
    cats = [picture(folder, str(n), "cat", flip=True) for n in range(10)]
    others = [picture(folder, str(n), "dog") for n in range(3)] + [picture(folder, "0", "bird")]
    large = [replace(cat, own_resolution=1024) for cat in cats]
    kept = [replace(one, is_regularization=True) for one in (*cats, *others)]
    return Dataset((*cats, *others, *large, *kept))


def test_a_share_of_each_concept_with_every_view(tmp_path: Path) -> None:
    whole = dataset(tmp_path)
    trained, held = hold_out(whole, 0.3)
    files = {concept: {p.path for p in held.pictures if p.concept == concept} for concept in ("cat", "dog", "bird")}
    assert {concept: len(found) for concept, found in files.items()} == {"cat": 3, "dog": 1, "bird": 0}
    assert sum(p.concept == "cat" for p in held.pictures) == 6, "both resolutions are measured"
    assert not any(p.is_regularization or p.flip for p in held.pictures)
    gone = set().union(*files.values())
    assert not gone & {p.path for p in trained.pictures}
    assert {p.path for p in trained.pictures} | gone == {p.path for p in whole.pictures}
    assert hold_out(whole.with_pictures(reversed(whole.pictures)), 0.3)[1].pictures[0].path in gone


def test_one_picture_of_each_concept_stays(tmp_path: Path) -> None:
    trained, held = hold_out(dataset(tmp_path), 0.9)
    left = [p.concept for p in trained.pictures if not p.is_regularization and not p.own_resolution]
    assert (left.count("cat"), left.count("dog"), left.count("bird")) == (1, 1, 1)
    # Also where two concepts share all their files.
    pairs = [picture(tmp_path, str(n), concept, f"same {n}") for n in range(2) for concept in ("one", "two")]
    trained, held = hold_out(Dataset(tuple(pairs)), 0.9)
    assert {p.concept for p in trained.pictures} == {"one", "two"} and len(held.pictures) == 2
    assert shared(held, trained) == []
    assert hold_out(Dataset(tuple(pairs)), 0.0)[1].pictures == ()


def test_copies_are_held_out_together(tmp_path: Path) -> None:
    copies = [picture(tmp_path, f"{n}{copy}", "cat", f"content {n}") for n in range(4) for copy in "ab"]
    trained, held = hold_out(Dataset(tuple(copies)), 0.25)
    assert len(held.pictures) == 2 and held.pictures[0].caption[0] == held.pictures[1].caption[0]
    assert shared(Dataset(tuple(copies)), held) == [p.path.name for p in held.pictures]
    assert len(trained.pictures) == 6
