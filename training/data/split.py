"""Hold pictures out of the training: they are measured instead."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace

from ..errors import UnreadableImage
from .dataset import Dataset, Picture
from .images import file_hash


def hold_out(dataset: Dataset, share: float) -> tuple[Dataset, Dataset]:
    """Split a share of each concept's pictures off a dataset.

    The choice follows from the files' content alone. So it is the same in every run, whatever the seed, and a new
    picture changes it little. Every view of a held-out file leaves the training: other resolutions, copies under other
    names, regularization pictures made of it. At least one picture of each concept stays.

    Args:
        dataset: What would be trained.
        share: Of the pictures of each concept, 0 to 1. At least one is held out where a concept has two or more.

    Returns:
        What is trained, and what is held out. Regularization and prior-preservation pictures are never held out.
    """
    hashes = [_content(picture) for picture in dataset.pictures]
    concepts: dict[str, set[str]] = {}  # the contents of each
    for picture, content in zip(dataset.pictures, hashes, strict=True):
        if content and _is_learned(picture):
            concepts.setdefault(picture.concept, set()).add(content)
    chosen: set[str] = set()
    for contents in concepts.values():
        wanted = max(1, round(share * len(contents))) if share > 0 else 0
        for content in sorted(contents, key=_draw):
            if len(contents & chosen) >= wanted:
                break
            owners = [other for other in concepts.values() if content in other]
            if all(len(other - chosen) > 1 for other in owners):
                chosen.add(content)
    if not chosen:
        return dataset, dataset.with_pictures(())
    pairs = list(zip(dataset.pictures, hashes, strict=True))
    held = (picture for picture, content in pairs if content in chosen and _is_learned(picture))
    return (
        dataset.with_pictures(picture for picture, content in pairs if content not in chosen),
        dataset.with_pictures(map(plain, held)),
    )


def learned(dataset: Dataset) -> Dataset:
    """The pictures to learn of a dataset, each as it is measured."""
    return dataset.with_pictures(plain(picture) for picture in dataset.pictures if _is_learned(picture))


def shared(one: Dataset, other: Dataset) -> list[str]:
    """Names of the files of one dataset whose content is in another too."""
    contents = _contents(other.pictures)
    found = {picture.path.name: None for picture in one.pictures if _content(picture) in contents}
    return list(found)


def plain(picture: Picture) -> Picture:
    """A picture without what varies from step to step: not mirrored, cropped or coloured at random."""
    return replace(picture, flip=False, random_crop=False, color_aug=False, variants=1)


def _contents(pictures: Iterable[Picture]) -> set[str]:
    return {content for picture in pictures if (content := _content(picture))}


def _content(picture: Picture) -> str:
    """The hash of a picture's file; empty if it cannot be read, which encoding reports."""
    try:
        return file_hash(picture.path)
    except UnreadableImage:
        return ""


def _draw(content: str) -> str:
    return hashlib.sha256(f"held out:{content}".encode()).hexdigest()


def _is_learned(picture: Picture) -> bool:
    return not (picture.is_regularization or picture.preserves_prior)
