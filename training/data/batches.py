"""The order of an epoch: which pictures share a batch, which are mirrored, and which batches form a step."""

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

Length = tuple[int, ...]  # a caption's token counts, one for each chunk of each tokenizer
_Key = tuple[tuple[int, int], Length]


@dataclass(frozen=True)
class Batch:
    """Pictures of one bucket and one caption length that go through the model together.

    Attributes:
        indices: Indices into `dataset.pictures`. A repeated picture can occur twice.
        flips: Whether each picture is mirrored.
        bucket: Their (width, height) in pixels.
        length: Token counts of their captions; empty if not counted.
        variants: Number of each picture's variant that is shown.
    """

    indices: tuple[int, ...]
    flips: tuple[bool, ...]
    bucket: tuple[int, int]
    length: Length = ()
    variants: tuple[int, ...] = ()

    @property
    def shown(self) -> list[tuple[int, bool, int]]:
        """What is shown: of each picture its index, whether it is mirrored, and its variant."""
        return list(zip(self.indices, self.flips, self.variants or (0,) * len(self.indices), strict=True))

    def __len__(self) -> int:
        """Number of pictures. The last batch of a bucket and caption length can be short."""
        return len(self.indices)


def epoch_batches(
    dataset: Dataset, batch_size: int, seed: int, epoch: int, lengths: Sequence[Length] = ()
) -> list[Batch]:
    """Batch one epoch: every picture `repeats` times, shuffled, each batch of one key.

    The key has two parts: the bucket and the caption length. Latents of one bucket have one shape, and so have
    conditionings of one length. So a batch is one forward.

    Pictures with fractional repeats take turns. Of twenty pictures with 0.25 repeats, each epoch shows five, and four
    epochs show all twenty.

    Pictures are shuffled within their key, then the batches are shuffled. Order, mirroring and variants have
    separate generators, so turning mirroring on does not change the order. Short batches are kept.

    Args:
        dataset: A bucketed dataset.
        batch_size: Maximum number of pictures in a batch.
        seed: The run's seed.
        epoch: Number of the epoch. Each epoch has its own order.
        lengths: Caption length of each picture; empty if all are equal.

    Raises:
        SettingError: The batch size is below 1.
    """
    order = generator(seed, "order", epoch)
    chunks: list[tuple[tuple[int, ...], _Key]] = []
    for key, indices in _indices_by_key(dataset, batch_size, epoch, lengths).items():
        shuffled = [indices[at] for at in torch.randperm(len(indices), generator=order).tolist()]
        chunks += [(tuple(shuffled[at : at + batch_size]), key) for at in range(0, len(shuffled), batch_size)]
    chunks = [chunks[at] for at in torch.randperm(len(chunks), generator=order).tolist()]
    count = sum(len(chunk) for chunk, _ in chunks)
    heads = iter((torch.rand(count, generator=generator(seed, "flip", epoch)) < 0.5).tolist())
    shares = iter(torch.rand(count, generator=generator(seed, "variant", epoch)).tolist())
    return [
        Batch(
            chunk,
            tuple(next(heads) and dataset.pictures[index].flip for index in chunk),
            *key,
            tuple(int(next(shares) * dataset.pictures[index].variants) for index in chunk),
        )
        for chunk, key in chunks
    ]


def steps_of(batches: Sequence[Batch], accumulation: int) -> list[list[Batch]]:
    """Group an epoch's batches into optimizer steps of `accumulation` batches. The last step may have fewer.

    Raises:
        SettingError: The accumulation is below 1.
    """
    if accumulation < 1:
        raise SettingError(f"gradient accumulation is {accumulation}. Set it to 1 or more.")
    return [list(batches[start : start + accumulation]) for start in range(0, len(batches), accumulation)]


def _indices_by_key(dataset: Dataset, batch_size: int, epoch: int, lengths: Sequence[Length]) -> dict[_Key, list[int]]:
    """Picture indices by bucket and caption length, each as often as this epoch shows it, keys sorted."""
    if batch_size < 1:
        raise SettingError(f"batch size is {batch_size}. Set it to 1 or more.")
    indices: dict[_Key, list[int]] = {}
    ranks: Counter[Fraction] = Counter()
    totals = Counter(_exact(picture.repeats) for picture in dataset.pictures)
    for index, picture in enumerate(dataset.pictures):
        assert picture.placement is not None, "not bucketed"
        repeats = _exact(picture.repeats)
        times = _times(repeats, Fraction(ranks[repeats], totals[repeats]), epoch)
        ranks[repeats] += 1
        key = picture.placement.bucket, lengths[index] if lengths else ()
        indices.setdefault(key, []).extend([index] * times)
    return {key: found for key, found in sorted(indices.items()) if found}


def _exact(repeats: float) -> Fraction:
    """Repeats as a fraction: 0.1 becomes exactly one tenth, not the nearest float."""
    return Fraction(repeats).limit_denominator(1_000_000)


def _times(repeats: Fraction, phase: Fraction, epoch: int) -> int:
    """How often an epoch shows a picture.

    Args:
        repeats: Its mean repeats per epoch.
        phase: Its rank among the pictures with equal repeats, 0 to 1. It spreads their turns, so that every epoch
            shows equally many of them (Hermite's identity).
        epoch: Number of the epoch, from 0.
    """
    return floor(repeats * (epoch + 1) + phase) - floor(repeats * epoch + phase)
