"""Combine datasets: with a weight for each, or as pictures to learn plus regularization pictures."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import UserError
from ..events import counted
from ..settings import Settings, knob
from .dataset import Dataset, Picture
from .words import COMMAS, calls, is_json, trigger_pattern

# The choices of what regularization pictures are trained towards, and whether each preserves the prior.
PRESERVES_PRIOR = {"as the model paints them": True, "as the pictures are": False}


@dataclass(frozen=True)
class ConcatSettings(Settings):
    """How often two joined datasets are seen."""

    first_weight: float = knob(
        1.0, "Multiplies the repeats of the first dataset. 0.5 shows its pictures half as often.",
        min=0.01, max=100.0, step=0.05, rounded=True,
    )
    second_weight: float = knob(
        1.0, "Multiplies the repeats of the second dataset. 0.5 shows its pictures half as often.",
        min=0.01, max=100.0, step=0.05, rounded=True,
    )


@dataclass(frozen=True)
class RegularizationSettings(Settings):
    """How regularization pictures count relative to the pictures to learn."""

    weight: float = knob(
        5.0,
        "Multiplies the loss of the regularization pictures. 5 suits the target 'as the model paints them', whose "
        "loss is small. 1 suits 'as the pictures are'.",
        min=0.01, max=100.0, step=0.05, rounded=True,
    )
    share: float = knob(
        1.0, "Number of regularization pictures per picture to learn. 1 shows both equally often.",
        min=0.01, max=10.0, step=0.05, rounded=True,
    )
    target: str = knob(
        "as the model paints them",
        "What these pictures are trained towards. 'as the model paints them': the original model's own prediction, "
        "which preserves it (recommended). 'as the pictures are': the pictures themselves, as in kohya's trainer.",
        choices=tuple(PRESERVES_PRIOR),
    )

    @property
    def preserves_prior(self) -> bool:
        """Whether the target is the model's own prediction."""
        return PRESERVES_PRIOR[self.target]


@dataclass(frozen=True)
class PriorPreservationSettings(Settings):
    """Captions without the trigger, and how much they count."""

    class_word: str = knob(
        "", "Replaces the trigger in every caption, for example: a woman, a dog, a vase. Empty: the trigger is removed."
    )
    prompts: str = knob(
        "",
        "Captions to use instead, one per line. Describe what the model should keep painting as it does now. Empty: "
        "the dataset's captions without the trigger.",
        multiline=True,
    )
    weight: float = knob(
        5.0, "Multiplies the loss of the preserved pictures. That loss is small, so 5 is a good start.",
        min=0.01, max=100.0, step=0.05, rounded=True,
    )
    share: float = knob(
        1.0, "Number of preserved pictures per picture to learn. 1 shows both equally often.",
        min=0.01, max=10.0, step=0.05, rounded=True,
    )


def concat(datasets: Sequence[Dataset], weights: Sequence[float] | None = None) -> Dataset:
    """Concatenate datasets.

    Args:
        datasets: At least one. The result has the background and name of the first. If triggers, caption policies or
            resolutions differ, each picture keeps its own.
        weights: Factor of each dataset's repeats; 1 by default.

    Raises:
        UserError: Only some are bucketed, the backgrounds differ, a weight is not above 0, or a regularization caption
            has the trigger.
    """
    weights = weights or [1.0] * len(datasets)
    first = datasets[0]
    if any(weight <= 0 for weight in weights):
        raise UserError(f"A weight is {min(weights):g}. Set it above 0, or disconnect that dataset.")
    if len({dataset.is_bucketed for dataset in datasets}) > 1:
        raise UserError("One dataset has buckets and another has none. Put Bucket Images after Concat Datasets.")
    if len({dataset.background for dataset in datasets}) > 1:
        raise UserError("The datasets have different background colours. Set the same one in each Load Dataset.")
    owners: dict[str, set[Path | None]] = {}
    for dataset in datasets:
        for concept in dataset.concepts():
            owners.setdefault(concept, set()).add(dataset.root)
    one_policy = len({dataset.policy for dataset in datasets}) == 1

    def taken(picture: Picture, dataset: Dataset, weight: float) -> Picture:
        trigger = dataset.trigger if picture.own_trigger is None else picture.own_trigger
        resolution = dataset.resolution_of(picture)
        return replace(
            picture,
            repeats=_scaled(picture.repeats, weight),
            # Folders of the same name in two datasets are two concepts.
            concept=f"{dataset.name}/{picture.concept}" if len(owners[picture.concept]) > 1 else picture.concept,
            own_trigger=None if trigger == first.trigger else trigger,
            own_policy=picture.own_policy if one_policy else dataset.policy_of(picture),
            own_resolution=None if resolution == first.resolution else resolution,
        )

    pictures = [
        taken(picture, dataset, weight)
        for dataset, weight in zip(datasets, weights, strict=True)
        for picture in dataset.pictures
    ]
    # The same folder twice has the same unreadable files.
    skipped = dict.fromkeys(sentence for dataset in datasets for sentence in dataset.skipped)
    joined = replace(
        first, pictures=tuple(pictures), skipped=tuple(skipped), root=_common_root(datasets),
        policy=first.policy if one_policy else None,
    )  # fmt: skip
    _refuse_regularized_trigger(joined)
    return joined


def with_regularization(
    dataset: Dataset, prior: Dataset, *, weight: float = 1.0, share: float = 1.0, preserves_prior: bool = True
) -> Dataset:
    """Add regularization pictures: pictures of the class, which keep the model from forgetting it.

    An epoch shows `share` times as many of them as of the pictures to learn, however many there are. Few are repeated.
    Of many, each epoch shows a different part, so that all get their turn.

    Args:
        dataset: The pictures to learn.
        prior: The regularization pictures.
        weight: Factor of a regularization picture's loss.
        share: Regularization pictures for each picture to learn.
        preserves_prior: Whether they are trained towards the model's own prediction (see `Picture`).

    Raises:
        UserError: A dataset is empty, or a number is not above 0; and as `concat`.
    """
    if not dataset.pictures or not prior.pictures:
        raise UserError("One of the two datasets is without pictures. Connect datasets that have some.")
    if weight <= 0 or share <= 0:
        raise UserError(f"weight is {weight:g} and share is {share:g}. Set both above 0.")
    draws = sum(picture.repeats for picture in dataset.pictures if not picture.is_regularization) * share
    own = sum(picture.repeats for picture in prior.pictures)
    balanced = prior.with_pictures(
        tuple(
            replace(p, repeats=p.repeats * draws / own, weight=weight, is_regularization=True,
                    preserves_prior=preserves_prior)
            for p in prior.pictures
        )
    )
    return concat([dataset, balanced])


def with_prior_preservation(
    dataset: Dataset, class_word: str = "", prompts: Sequence[str] = (), *, weight: float = 1.0, share: float = 1.0
) -> Dataset:
    """Add prior preservation without further pictures.

    The pictures to learn are also trained under captions without the trigger, towards the model's own prediction
    without the LoRA. So only the trigger calls what is learned.

    Args:
        dataset: The pictures to learn.
        class_word: Replaces the trigger in each caption, such as `a creature`. Empty: the trigger is removed.
        prompts: Captions to use instead, in turn.
        weight: Factor of the loss of the added pictures.
        share: Added pictures for each picture to learn.

    Raises:
        UserError: There is neither a trigger nor a prompt, or a prompt contains the trigger; and as
            `with_regularization`.
    """
    prompts = [prompt.strip() for prompt in prompts if prompt.strip()]
    triggers = sorted({dataset.trigger_of(p) for p in dataset.pictures} - {""})
    if not prompts and not triggers:
        raise UserError(
            "The dataset has no trigger word to remove from its captions. Enter a trigger in Load Dataset, or write "
            "prompts of what the model should preserve."
        )
    called = trigger_pattern(triggers)
    for prompt in prompts:
        found = called.search(unicodedata.normalize("NFC", prompt)) if called else None
        if found:
            raise UserError(
                f"The prompt {prompt!r} has the trigger {found[0]!r} in it, which would stop it from being learned. "
                "Remove the trigger from the prompt."
            )
    learned = [picture for picture in dataset.pictures if not picture.is_regularization]
    if called and not prompts:
        # Without a trigger to remove, the learned and the preserved copy would have the same caption.
        learned = [picture for picture in learned if called.search(unicodedata.normalize("NFC", picture.caption))]
        if not learned:
            listed = " or ".join(map(repr, triggers))
            raise UserError(
                f"No caption has the trigger {listed} in it. Enter the trigger in Load Dataset, which adds it to every "
                "caption."
            )
    if prompts:
        count = max(len(prompts), len(learned))  # so that every prompt and every picture gets its turn
        shown = [learned[number % len(learned)] for number in range(count)]
        captions = [prompts[number % len(prompts)] for number in range(count)]
    else:
        assert called is not None
        shown, word = learned, class_word.strip()
        known = [unicodedata.normalize("NFC", picture.caption) for picture in learned]
        captions = [_without_trigger(caption, called, word) for caption in known]
    # The copy is preserved whole, even if a mask limits what is learned of the picture.
    prior = [replace(p, caption=caption, outside=1.0) for p, caption in zip(shown, captions, strict=True)]
    return with_regularization(dataset, dataset.with_pictures(tuple(prior)), weight=weight, share=share)


def _refuse_regularized_trigger(dataset: Dataset) -> None:
    """Refuse regularization pictures whose caption has a trigger of the others."""
    kept = [picture for picture in dataset.pictures if picture.is_regularization]
    for trigger in sorted({dataset.trigger_of(picture) for picture in dataset.pictures} - {""} if kept else ()):
        calling = [picture.path.name for picture in kept if calls(picture.caption, trigger)]
        if calling:
            more = f" and {len(calling) - 3} more" if len(calling) > 3 else ""
            raise UserError(
                f"The trigger {trigger!r} is in the caption of {counted(len(calling), 'regularization picture')} "
                f"({', '.join(calling[:3])}{more}), which would stop it from being learned. Remove it there."
            )


def _without_trigger(caption: str, called: re.Pattern[str], word: str) -> str:
    """A caption with another word for the trigger, without the doubled spaces and commas that none leaves behind."""
    if is_json(caption):
        return called.sub(lambda _: json.dumps(word, ensure_ascii=False)[1:-1], caption)
    lines = (re.sub(r"[ \t]+", " ", line) for line in called.sub(lambda _: word, caption).splitlines())
    return "\n".join(re.sub(rf"\s*([{COMMAS}])(?:\s*[{COMMAS}])+", r"\1", line).strip(f" {COMMAS}") for line in lines)


def _scaled(repeats: float, weight: float) -> float:
    """Multiply. A whole result becomes an int."""
    scaled = repeats * weight
    return int(scaled) if float(scaled).is_integer() else scaled


def _common_root(datasets: Sequence[Dataset]) -> Path | None:
    """The nearest folder that contains all datasets. Names relative to it are unique."""
    roots = {dataset.root for dataset in datasets}
    if None in roots:
        return None
    try:
        common = Path(os.path.commonpath([str(root) for root in roots]))
    except ValueError:  # on different drives
        return None
    return None if common == Path(common.anchor) else common
