"""What a DATASET is: a manifest of pictures on disk, never the pictures themselves.

A dataset is frozen. Every operation returns a new one, so one object can safely feed several nodes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from ..events import counted
from ..settings import Settings, knob

# kohya's folder names, plus fractions. More than four digits is a date or a camera's number, not a count.
REPEATS = re.compile(r"([0-9]{1,4}(?:\.[0-9]{1,3})?)_(.*)")


@dataclass(frozen=True)
class Placement:
    """How one picture fills its bucket: scale to `scaled`, then cut or pad to `bucket`.

    All sizes are (width, height) in pixels; offsets are (left, top). With fit `crop` the scaled picture covers the
    bucket, and `offset` is the corner of the crop inside the picture. With fit `pad` the scaled picture lies inside
    the bucket, and `offset` is its corner there; the rest is padding, which carries no loss.
    """

    bucket: tuple[int, int]
    scaled: tuple[int, int]
    offset: tuple[int, int]
    fit: str = "crop"


@dataclass(frozen=True)
class Picture:
    """One picture of a dataset.

    Attributes:
        path: The file. A picture that came as a tensor is a PNG in ComfyUI's temp folder.
        size: (width, height) in pixels as a viewer shows it, with EXIF orientation applied.
        caption: The text trained with it. All lines are joined, or a policy draws one line at a time. JSON is trained
            as it stands.
        repeats: How often an epoch shows it, above 0; 0.25 is every fourth epoch.
        concept: Name of the folder it came from, such as `10_my_character`.
        class_word: The class in the folder's name, such as `my_character`; may be empty.
        fingerprint: Changes when the file does: size and modification time, or a content hash.
        placement: Its placement in its bucket; None before Bucket Images.
        weight: Factor of its loss.
        is_regularization: Whether it is a regularization picture: it preserves what the model knows.
        preserves_prior: Whether it is trained towards the model's own prediction without the LoRA (prior
            preservation) instead of towards itself.
        mask: The mask file, whose white parts are learned; `path` itself to learn its opaque parts; or None.
        controls: Its control pictures, for edit and ControlNet models. Nothing uses them yet.
        outside: Weight of the loss where the mask is black, 0 to 1. At 1 the mask is not used.
        flip: Whether it is mirrored with probability one half each time it is shown.
        random_crop: Whether each of its variants is cropped at a random place.
        color_aug: Whether a third of its variants have other colours.
        variants: Number of its variants, of which one is drawn each time it is shown.
        own_trigger: Its trigger, if it differs from the dataset's after a concat; None: the dataset's.
        own_policy: Its caption policy, if it differs from the dataset's after a concat; None: the dataset's.
        own_resolution: Its resolution, if it differs from the dataset's after a concat; None: the dataset's. One file
            can be in a dataset at several resolutions.
    """

    path: Path
    size: tuple[int, int]
    caption: str
    repeats: float = 1
    concept: str = ""
    class_word: str = ""
    fingerprint: str = ""
    placement: Placement | None = None
    weight: float = 1.0
    is_regularization: bool = False
    preserves_prior: bool = False
    mask: Path | None = None
    controls: tuple[Path, ...] = ()
    outside: float = 1.0
    flip: bool = False
    random_crop: bool = False
    color_aug: bool = False
    variants: int = 1
    own_trigger: str | None = None
    own_policy: CaptionPolicy | None = None
    own_resolution: int | None = None

    @property
    def is_of_the_graph(self) -> bool:
        """Whether it came as a tensor from the graph: its file is named by its content."""
        return self.fingerprint == self.path.stem

    @property
    def is_masked(self) -> bool:
        """Whether a mask makes parts of it count less."""
        return self.mask is not None and self.outside < 1


@dataclass(frozen=True)
class Dataset:
    """A frozen manifest of pictures.

    Attributes:
        pictures: In natural order of their paths.
        name: Its name: that of the folder.
        root: The folder it was read from, if any.
        trigger: The trigger word of the concept; may be empty.
        background: (r, g, b), 0 to 255: shows through transparent pixels and fills padding.
        skipped: One sentence for each file that could not be used, with its name.
        bucket_step: The step of bucket sides in pixels; 0 before bucketing. After a concat, the first dataset's.
        resolution: The side in pixels of the square whose area the buckets approximate; 0 before bucketing. After a
            concat, the first dataset's: ask `resolutions` or `resolution_of`.
        policy: How captions vary during training; None: they do not.
        notes: One sentence for each thing worth knowing about how it was read.
    """

    pictures: tuple[Picture, ...]
    name: str = "dataset"
    root: Path | None = None
    trigger: str = ""
    background: tuple[int, int, int] = (255, 255, 255)
    skipped: tuple[str, ...] = field(default=())
    bucket_step: int = 0
    resolution: int = 0
    policy: CaptionPolicy | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def is_bucketed(self) -> bool:
        """Whether every picture has a bucket."""
        return all(picture.placement is not None for picture in self.pictures)

    @property
    def images_per_epoch(self) -> int:
        """Pictures shown in one epoch, counting repeats. With fractional repeats, the mean over epochs."""
        return round(sum(picture.repeats for picture in self.pictures))

    def without_copies(self) -> tuple[Picture, ...]:
        """The pictures without regularization pictures that are second copies of learned ones."""
        learned = {picture.path for picture in self.pictures if not picture.is_regularization}
        return tuple(p for p in self.pictures if not (p.is_regularization and p.path in learned))

    def trigger_of(self, picture: Picture) -> str:
        """A picture's trigger word; empty if there is none, and for regularization pictures."""
        if picture.is_regularization:
            return ""
        return self.trigger if picture.own_trigger is None else picture.own_trigger

    def policy_of(self, picture: Picture) -> CaptionPolicy | None:
        """How a picture's caption varies during training; None: it does not."""
        return picture.own_policy or self.policy

    def resolution_of(self, picture: Picture) -> int:
        """The resolution a picture's bucket was chosen for; 0 before bucketing."""
        return self.resolution if picture.own_resolution is None else picture.own_resolution

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Every resolution of its pictures, in order of first appearance; empty before bucketing."""
        found = dict.fromkeys(self.resolution_of(picture) for picture in self.pictures)
        return tuple(resolution for resolution in found if resolution)

    def further_views(self) -> set[int]:
        """Numbers of the pictures whose file comes earlier at another resolution: views, not files of their own."""
        first: dict[tuple[Path, bool], int] = {}
        return {
            number for number, picture in enumerate(self.pictures)
            if first.setdefault((picture.path, picture.is_regularization), self.resolution_of(picture))
            != self.resolution_of(picture)
        }  # fmt: skip

    def concept_of(self, picture: Picture) -> str:
        """The concept a picture's loss is reported under: its folder. Regularization pictures are separate."""
        # The suffix is in the metadata and summaries of existing runs.
        return (picture.concept or self.name) + (" (kept)" if picture.is_regularization else "")

    def concepts(self) -> dict[str, list[Picture]]:
        """Pictures by the folder they came from, in order of first appearance."""
        found: dict[str, list[Picture]] = {}
        for picture in self.pictures:
            found.setdefault(picture.concept, []).append(picture)
        return found

    def buckets(self) -> dict[tuple[int, int], list[Picture]]:
        """Pictures by bucket (width, height), sorted by size; needs a bucketed dataset."""
        found: dict[tuple[int, int], list[Picture]] = {}
        for picture in self.pictures:
            assert picture.placement is not None, "not bucketed"
            found.setdefault(picture.placement.bucket, []).append(picture)
        return dict(sorted(found.items()))

    def describe(self) -> str:
        """Describe what is in it and what was left out, in one or two sentences."""
        captions = len({picture.caption for picture in self.pictures if picture.caption})
        text = counted(len(self.pictures) - len(self.further_views()), "picture")
        if len(self.resolutions) > 1:
            text += f" at the resolutions {' and '.join(map(str, self.resolutions))}"
        text += f", {self.images_per_epoch} per epoch"
        text += f", {counted(captions, 'different caption')}."
        if self.skipped:
            text += f" Left out: {' '.join(self.skipped[:5])}"
            text += f" … and {len(self.skipped) - 5} more." if len(self.skipped) > 5 else ""
        return text

    def __str__(self) -> str:
        """Say the same where ComfyUI's Preview Any prints it."""
        return self.describe()

    def with_pictures(self, pictures: Iterator[Picture] | tuple[Picture, ...]) -> Dataset:
        """The same dataset with other pictures."""
        return replace(self, pictures=tuple(pictures))


@dataclass(frozen=True)
class CaptionPolicy(Settings):
    """How captions vary each time a picture is shown."""

    shuffle: bool = knob(
        False, "Shuffle the tags each time, so that their order is not learned. Leave it off for sentences."
    )
    keep_tokens: int = knob(
        1, "Number of leading tags that stay in place. ||| in a caption marks the same point for that caption.",
        min=0, max=1000,
    )
    tag_dropout: float = knob(
        0.0, "Share of tags left out each time, so that no single tag is needed in a prompt. 0.1 is a good start.",
        min=0.0, max=1.0, step=0.01,
    )
    caption_dropout: float = knob(
        0.0, "Share of views in which only the trigger, or no caption, is used. 0.05 to 0.1 is common.",
        min=0.0, max=1.0, step=0.01,
    )
    wildcards: bool = knob(
        False, "Draw one option of {red|blue|green} each time. Off: the braces are trained as plain text."
    )
    draw_one_line: bool = knob(
        False, "Draw one line of a caption with several lines each time. Off: all lines are joined."
    )
    drop_every_epochs: int = knob(
        0,
        "In every epoch that is a multiple of this, only the trigger, or no caption, is used: 3 drops the captions of "
        "epochs 3, 6 and so on. 0 turns it off.",
        min=0, max=100_000,
    )

    # Saved workflows hold values by position: a new setting goes to the end.
    ADDED_FROM: ClassVar[str] = "draw_one_line"

    def drops_epoch(self, epoch: int) -> bool:
        """Whether all captions of an epoch, counted from 0, are dropped."""
        return self.drop_every_epochs > 0 and (epoch + 1) % self.drop_every_epochs == 0


def name_in(dataset: Dataset, picture: Picture) -> str:
    """A picture's path within its dataset's folder, with forward slashes.

    Without such a folder: the file name after the parent's name and a hash, which tells equally named folders apart.
    """
    folder = picture.path.parent
    if dataset.root and dataset.root in picture.path.parents:
        return picture.path.relative_to(dataset.root).as_posix()
    short_hash = hashlib.sha256(str(folder).encode("utf-8", "surrogateescape")).hexdigest()[:6]
    return f"{folder.name}-{short_hash}/{picture.path.name}"


def without(dataset: Dataset, excluded: frozenset[str]) -> Dataset:
    """The dataset without some pictures, named as by `name_in`."""
    return dataset.with_pictures(p for p in dataset.pictures if name_in(dataset, p) not in excluded)
