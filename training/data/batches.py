"""The order of an epoch: which pictures are trained together, which are mirrored, and when a step is made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import floor

import torch

from ..draws import generator
from ..errors import SettingError
from .dataset import Dataset


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
    """Deal one epoch: every picture `repeats` times, shuffled, no batch from two buckets.

    Repeats that are no whole number take turns: of twenty pictures with 0.25 five are seen in each epoch, and all
    twenty in four.

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
    for bucket, deck in _decks(dataset, batch_size, epoch).items():
        shuffled = [deck[place] for place in torch.randperm(len(deck), generator=order).tolist()]
        dealt += [(tuple(shuffled[start : start + batch_size]), bucket) for start in range(0, len(deck), batch_size)]
    dealt = [dealt[place] for place in torch.randperm(len(dealt), generator=order).tolist()]
    draws = torch.rand(sum(len(indices) for indices, _ in dealt), generator=generator(seed, "flip", epoch))
    heads = iter((draws < 0.5).tolist())
    return [
        Batch(indices, tuple(next(heads) and dataset.pictures[index].flip for index in indices), bucket)
        for indices, bucket in dealt
    ]


def steps_of(batches: Sequence[Batch], accumulation: int) -> list[list[Batch]]:
    """Group an epoch's batches into optimizer steps of `accumulation` batches; the last may have fewer.

    Raises:
        SettingError: The accumulation is below 1.
    """
    if accumulation < 1:
        raise SettingError(f"gradient accumulation is {accumulation}: it must be at least 1.")
    return [list(batches[start : start + accumulation]) for start in range(0, len(batches), accumulation)]


def _decks(dataset: Dataset, batch_size: int, epoch: int) -> dict[tuple[int, int], list[int]]:
    """Indices of the pictures by bucket, each as often as it is seen in this epoch, buckets sorted by size."""
    if batch_size < 1:
        raise SettingError(f"batch size is {batch_size}: it must be at least 1.")
    decks: dict[tuple[int, int], list[int]] = {}
    ranks: Counter[Fraction] = Counter()
    alike = Counter(_exact(picture.repeats) for picture in dataset.pictures)
    for index, picture in enumerate(dataset.pictures):
        assert picture.placement is not None, "not bucketed"
        repeats = _exact(picture.repeats)
        times = _times(repeats, Fraction(ranks[repeats], alike[repeats]), epoch)
        ranks[repeats] += 1
        decks.setdefault(picture.placement.bucket, []).extend([index] * times)
    return {bucket: deck for bucket, deck in sorted(decks.items()) if deck}


def _exact(repeats: float) -> Fraction:
    """Repeats as a fraction: 0.1 as a tenth, not as the nearest number of a computer."""
    return Fraction(repeats).limit_denominator(1_000_000)


def _times(repeats: Fraction, phase: Fraction, epoch: int) -> int:
    """How often a picture is seen in an epoch.

    Args:
        repeats: Its mean number.
        phase: Its place among the pictures of like repeats, 0 to 1: it spreads their turns, so that an epoch has as
            many of them as the next (Hermite's identity).
        epoch: Which epoch, from 0.
    """
    return floor(repeats * (epoch + 1) + phase) - floor(repeats * epoch + phase)
