"""An epoch shows every picture as often as it repeats, in an order that depends only on the seed and the epoch."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from lora_workbench.training.data import batches
from lora_workbench.training.data.dataset import Dataset, Picture, Placement
from lora_workbench.training.errors import SettingError


def _dataset(flip: bool = False) -> Dataset:
    def picture(index: int) -> Picture:
        bucket = [(512, 512), (448, 576), (576, 448)][index % 3]
        return Picture(
            Path(f"{index}.png"), (9, 9), "", repeats=1 + index % 4, placement=Placement(bucket, bucket, (0, 0)),
            flip=flip,
        )  # fmt: skip

    return Dataset(tuple(picture(index) for index in range(23)))


@pytest.mark.parametrize("batch_size", [1, 2, 4, 100])
def test_an_epoch_is_complete_and_unmixed(batch_size: int) -> None:
    dataset = _dataset()
    dealt = batches.epoch_batches(dataset, batch_size, seed=3, epoch=1)
    seen = Counter(index for batch in dealt for index in batch.indices)
    assert seen == {index: picture.repeats for index, picture in enumerate(dataset.pictures)}
    for batch in dealt:
        assert {dataset.pictures[index].placement.bucket for index in batch.indices} == {batch.bucket}
        assert 1 <= len(batch) <= batch_size and len(batch.flips) == len(batch)
    # At most one short batch per bucket.
    assert max(Counter(batch.bucket for batch in dealt if len(batch) < batch_size).values(), default=0) <= 1


@pytest.mark.parametrize(("repeats", "count", "each"), [(0.25, 20, 5), (0.1, 30, 3), (1.5, 8, 12), (7 / 3, 3, 7)])
def test_fractional_repeats_take_turns(repeats: float, count: int, each: int) -> None:
    place = Placement((512, 512), (512, 512), (0, 0))
    pictures = tuple(Picture(Path(f"{n}.png"), (9, 9), "", repeats=repeats, placement=place) for n in range(count))
    epochs = [
        Counter(i for batch in batches.epoch_batches(Dataset(pictures), 4, 0, epoch) for i in batch.indices)
        for epoch in range(30)
    ]
    assert {sum(seen.values()) for seen in epochs} == {each}
    total = sum(epochs, Counter())
    assert all(total[index] == pytest.approx(30 * repeats, abs=1) for index in range(count)), "some are too rare"


def test_order_depends_on_seed_and_epoch() -> None:
    dataset = _dataset()
    first = batches.epoch_batches(dataset, 2, seed=3, epoch=1)
    assert first == batches.epoch_batches(dataset, 2, seed=3, epoch=1)
    assert first != batches.epoch_batches(dataset, 2, seed=3, epoch=2)
    assert first != batches.epoch_batches(dataset, 2, seed=4, epoch=1)
    buckets = [batch.bucket for batch in first]
    assert buckets != sorted(buckets), "batches are grouped by bucket"
    for batch in batches.epoch_batches(dataset, 100, seed=3, epoch=1):
        assert list(batch.indices) != sorted(batch.indices), "pictures are in folder order"


def test_flip_changes_nothing_else() -> None:
    plain = batches.epoch_batches(_dataset(), 2, seed=3, epoch=1)
    flipped = batches.epoch_batches(_dataset(flip=True), 2, seed=3, epoch=1)
    assert [batch.indices for batch in plain] == [batch.indices for batch in flipped]
    assert not any(flip for batch in plain for flip in batch.flips)
    # Flips have their own generator, so they do not depend on the order's draws.
    whole = batches.epoch_batches(_dataset(flip=True), 100, seed=3, epoch=1)
    assert [flip for batch in whole for flip in batch.flips] == [flip for batch in flipped for flip in batch.flips]
    draws = [
        flip for epoch in range(20) for b in batches.epoch_batches(_dataset(True), 2, 3, epoch) for flip in b.flips
    ]
    assert 0.45 < sum(draws) / len(draws) < 0.55
    # After a concat one dataset may be mirrored while the other shows text.
    some = _dataset(True)
    some = some.with_pictures(replace(p, flip=number < 10) for number, p in enumerate(some.pictures))
    dealt = batches.epoch_batches(some, 2, seed=3, epoch=1)
    mirrored = {index for batch in dealt for index, flip in zip(batch.indices, batch.flips, strict=True) if flip}
    assert mirrored and max(mirrored) < 10
    assert [b.flips for b in flipped] != [b.flips for b in batches.epoch_batches(_dataset(True), 2, 3, 2)]


def test_steps_group_batches_and_keep_the_rest() -> None:
    dealt = batches.epoch_batches(_dataset(), 4, seed=0, epoch=0)
    steps = batches.steps_of(dealt, 3)
    assert [batch for step in steps for batch in step] == dealt
    assert {len(step) for step in steps[:-1]} == {3} and 1 <= len(steps[-1]) <= 3
    assert batches.steps_of([], 3) == []


@pytest.mark.parametrize("batch_size", [1, 2, 4, 100])
def test_a_batch_has_one_caption_length(batch_size: int) -> None:
    dataset = _dataset()
    lengths = [(77,) if index % 2 else (77, 77) for index in range(len(dataset.pictures))]
    dealt = batches.epoch_batches(dataset, batch_size, 3, 1, lengths)
    seen = Counter(index for batch in dealt for index in batch.indices)
    assert seen == {index: picture.repeats for index, picture in enumerate(dataset.pictures)}
    for batch in dealt:
        assert {lengths[index] for index in batch.indices} == {batch.length}
        assert {dataset.pictures[index].placement.bucket for index in batch.indices} == {batch.bucket}
    short = Counter((batch.bucket, batch.length) for batch in dealt if len(batch) < batch_size)
    assert max(short.values(), default=0) <= 1
    assert dealt == batches.epoch_batches(dataset, batch_size, 3, 1, lengths)


def test_equal_lengths_change_no_order() -> None:
    dataset = _dataset(flip=True)
    plain = batches.epoch_batches(dataset, 4, 3, 1)
    equal = batches.epoch_batches(dataset, 4, 3, 1, [(77,)] * len(dataset.pictures))
    assert plain == [replace(batch, length=()) for batch in equal]


def test_invalid_values_are_rejected() -> None:
    with pytest.raises(SettingError, match="batch size is 0"):
        batches.epoch_batches(_dataset(), 0, 0, 0)
    with pytest.raises(SettingError, match="gradient accumulation is 0"):
        batches.steps_of([], 0)
    with pytest.raises(AssertionError, match="not bucketed"):
        batches.epoch_batches(replace(_dataset(), pictures=(Picture(Path("a"), (1, 1), ""),)), 1, 0, 0)
