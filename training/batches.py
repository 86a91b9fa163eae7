"""The order of an epoch: which pictures are trained together, which are mirrored, and when a step is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .dataset import Dataset
from .draws import generator
from .errors import SettingError


@dataclass(frozen=True)
class Batch:
    """Pictures of one bucket that go through the model together.

    Attributes:
        indices: Places in `dataset.pictures`. One picture can be there twice when its folder repeats it.
        flips: For each of them, whether it is shown mirrored.
        bucket: Their (width, height) in pixels.
    """

    indices: tuple[int, ...]
    flips: tuple[bool, ...]
    bucket: tuple[int, int]

    def __len__(self) -> int:
        """Pictures in it; the last batch of a bucket can be short."""
        return len(self.indices)


def epoch_batches(dataset: Dataset, batch_size: int, seed: int, epoch: int) -> list[Batch]:
    """Deal one epoch: every picture exactly `repeats` times, shuffled, no batch from two buckets.

    Pictures are shuffled inside their bucket, then the batches among one another. Order and mirroring have a
    generator each, so that turning mirroring on leaves the order as it was. Short batches are kept.

    Args:
        dataset: A bucketed dataset.
        batch_size: Most pictures in a batch.
        seed: The run's seed.
        epoch: Number of the epoch; each has an order of its own.

    Raises:
        SettingError: The batch size is below 1.
    """
    order = generator(seed, "order", epoch)
    dealt: list[tuple[tuple[int, ...], tuple[int, int]]] = []
    for bucket, deck in _decks(dataset, batch_size).items():
        shuffled = [deck[place] for place in torch.randperm(len(deck), generator=order).tolist()]
        dealt += [(tuple(shuffled[start : start + batch_size]), bucket) for start in range(0, len(deck), batch_size)]
    dealt = [dealt[place] for place in torch.randperm(len(dealt), generator=order).tolist()]
    mirrored = [False] * dataset.images_per_epoch
    if dataset.flip:
        mirrored = (torch.rand(len(mirrored), generator=generator(seed, "flip", epoch)) < 0.5).tolist()
    draws = iter(mirrored)
    return [Batch(indices, tuple(next(draws) for _ in indices), bucket) for indices, bucket in dealt]


def steps_of(batches: Sequence[Batch], accumulation: int) -> list[list[Batch]]:
    """Group an epoch's batches into optimizer steps of `accumulation` batches; the last may have fewer.

    Raises:
        SettingError: The accumulation is below 1.
    """
    if accumulation < 1:
        raise SettingError(f"gradient accumulation is {accumulation}: it must be at least 1.")
    return [list(batches[start : start + accumulation]) for start in range(0, len(batches), accumulation)]


def _decks(dataset: Dataset, batch_size: int) -> dict[tuple[int, int], list[int]]:
    """Indices of the pictures by bucket, each as often as it repeats, buckets sorted by size."""
    if batch_size < 1:
        raise SettingError(f"batch size is {batch_size}: it must be at least 1.")
    decks: dict[tuple[int, int], list[int]] = {}
    for index, picture in enumerate(dataset.pictures):
        assert picture.placement is not None, "not bucketed"
        decks.setdefault(picture.placement.bucket, []).extend([index] * picture.repeats)
    return dict(sorted(decks.items()))
