"""What a run will show, in which order and under which captions: all of it is known before the run begins."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property

from .captions.live import caption_for, one_line
from .config import TrainConfig
from .data.batches import Batch, Length, epoch_batches, steps_of
from .data.dataset import Dataset, Picture
from .data.words import has_words

_TRIES = 20  # draws of a varied caption
_LETTERS = 4  # of a token, where tokens are not counted


class Plan:
    """The steps of a run.

    Args:
        dataset: Bucketed.
        config: The run's settings.
        lengths: Token counts of each of `whole_captions(dataset)`. Captions of one length share a batch. Empty: all
            captions count as equal.
    """

    def __init__(self, dataset: Dataset, config: TrainConfig, lengths: Mapping[str, Length] | None = None) -> None:
        self.dataset, self.config, self.lengths = dataset, config, lengths or {}
        self._ends: list[int] = []  # of each epoch's micro-steps

    def steps(self, epoch: int) -> list[list[Batch]]:
        """The optimizer steps of an epoch, each a list of micro-batches."""
        lengths = [self.lengths[caption] for caption in whole_captions(self.dataset)] if self.lengths else []
        batches = epoch_batches(self.dataset, self.config.batch_size, self.config.seed, epoch, lengths)
        return steps_of(batches, self.config.gradient_accumulation)

    @cached_property
    def total(self) -> int:
        """Optimizer steps of the run."""
        if self.config.steps:
            return self.config.steps
        if all(float(picture.repeats).is_integer() for picture in self.dataset.pictures):
            return self.config.epochs * len(self.steps(0))
        return sum(len(self.steps(epoch)) for epoch in range(self.config.epochs))  # epochs can differ by a batch

    @cached_property
    def epochs(self) -> int:
        """Epochs of the run, the last one begun counted."""
        return math.ceil(self.config.steps / len(self.steps(0))) if self.config.steps else self.config.epochs

    @cached_property
    def finished_epochs(self) -> int:
        """Epochs that the run finishes."""
        return self.config.steps // len(self.steps(0)) if self.config.steps else self.config.epochs

    @cached_property
    def images_per_step(self) -> float:
        """Mean number of pictures in a step."""
        return self.dataset.images_per_epoch / len(self.steps(0))

    def micro_batches(self) -> Iterator[tuple[int, Batch]]:
        """Every micro-batch of the run with its number."""
        micro_step = done = epoch = 0
        while done < self.total:
            for step in self.steps(epoch)[: self.total - done]:
                for batch in step:
                    yield micro_step, batch
                    micro_step += 1
                done += 1
            epoch += 1

    def caption(self, index: int, micro_step: int, place: int) -> str:
        """What a picture is called in one micro-step.

        Args:
            index: Of the picture.
            micro_step: Micro-steps since the run began.
            place: Its place in the batch.
        """
        picture = self.dataset.pictures[index]
        policy = self.dataset.policy_of(picture)
        epoch = self.epoch_of(micro_step) if policy and policy.drop_every_epochs else None
        return caption_for(picture, self.dataset, self.config.seed, micro_step, place, epoch)

    def epoch_of(self, micro_step: int) -> int:
        """The epoch, from 0, that a micro-step belongs to. With fractional repeats, epochs can differ by a batch."""
        while not self._ends or self._ends[-1] <= micro_step:
            begun = self._ends[-1] if self._ends else 0
            self._ends.append(begun + sum(map(len, self.steps(len(self._ends)))))
        return bisect_right(self._ends, micro_step)

    def captions(self) -> list[str]:
        """Every caption that the run will ask for, each once."""
        if all(self.dataset.policy_of(picture) is None for picture in self.dataset.pictures):
            return list(dict.fromkeys(self.caption(index, 0, 0) for index in range(len(self.dataset.pictures))))
        asked = {
            self.caption(index, micro_step, place): None
            for micro_step, batch in self.micro_batches()
            for place, index in enumerate(batch.indices)
        }
        return list(asked)

    def largest(self) -> tuple[int, Batch]:
        """The first micro-batch of the first epoch that takes the most memory, and its number.

        A caption's token weighs as much as 16×16 pixels, as in models in which they attend to each other.
        """
        whole = whole_captions(self.dataset)

        def size(numbered: tuple[int, Batch]) -> float:
            number, batch = numbered
            drawn = max(len(self.caption(index, number, place)) for place, index in enumerate(batch.indices))
            tokens = drawn / _LETTERS  # a policy may draw less than the whole caption, or nothing
            if batch.length:
                tokens = sum(batch.length) * drawn / max(1, *(len(whole[index]) for index in batch.indices))
            return len(batch) * (batch.bucket[0] * batch.bucket[1] / 256 + tokens)

        first = [batch for step in self.steps(0)[: self.total] for batch in step]
        return max(enumerate(first), key=size)


def whole_captions(dataset: Dataset) -> list[str]:
    """Each picture's whole caption, as it is trained without a policy. A policy's draws can be shorter."""
    return [one_line(picture.caption, dataset.trigger_of(picture)) for picture in dataset.pictures]


def is_trained_with_words(picture: Picture, dataset: Dataset) -> bool:
    """Whether a picture's caption has words when it is trained.

    Caption dropout does not count, since it is meant. A caption that loses its words in some draws still has them.
    """
    policy = dataset.policy_of(picture)
    if policy is None:
        return has_words(picture.caption)
    picture = replace(picture, own_policy=replace(policy, caption_dropout=0.0))
    return any(has_words(caption_for(picture, dataset, 0, number, 0)) for number in range(_TRIES))
