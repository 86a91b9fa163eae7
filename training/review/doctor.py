"""Examines a dataset as an experienced trainer would: what spoils the LoRA, in which files, and what to do first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ..data.buckets import enlargement, lost_share
from ..data.dataset import Dataset, Picture, name_in
from ..data.words import calls
from ..events import counted
from ..settings import Settings, knob
from .caption_checks import check_captions, check_tags
from .finding import NOTE, SPOILS, WEAKENS, Finding, pictures_that
from .looks import Look, near_duplicates
from .syntax_checks import check_syntax

MOST_LOST = 1 / 3  # share of a picture cut away by the crop
MOST_ENLARGED = 1.2
BLURRED = 0.15  # share of the dataset's median sharpness
FEWEST, MOST_OF_A_SUBJECT, MOST = 10, 30, 50  # pictures of a concept: 10 to 30 suit a subject, 20 to 50 a style
UNBALANCED = 3.0  # ratio of the draws of two concepts
TOO_MANY_DUPLICATES = 2000  # pairs listed at most


@dataclass(frozen=True)
class ReportSettings(Settings):
    """What happens to the worst pictures."""

    leave_out_the_worst: bool = knob(
        False,
        "Leave out unreadable pictures, spare duplicates, blurred pictures and those enlarged more than twice. The "
        "files stay on disk.",
    )


@dataclass(frozen=True)
class Examination:
    """All findings, the worst first."""

    findings: tuple[Finding, ...]
    pictures: int

    @property
    def excluded(self) -> frozenset[str]:
        """Pictures that can be left out without loss."""
        return frozenset(name for finding in self.findings for name in finding.exclude)

    def text(self, most: int = 12) -> str:
        """Return the findings as numbered lines: what, what to do, and the first `most` files."""
        if not self.findings:
            return f"{counted(self.pictures, 'picture')}, no problems found."
        lines = []
        for number, finding in enumerate(self.findings, 1):
            lines.append(f"{number}. {finding.what} {finding.advice}")
            if finding.files:
                more = len(finding.files) - most
                lines.append("   " + ", ".join(finding.files[:most]) + (f" … and {more} more" if more > 0 else ""))
        return "\n".join(lines)


def examine(
    dataset: Dataset,
    looks: Sequence[Look | None],
    count_tokens: Callable[[str], int] | None = None,
) -> Examination:
    """Examine a dataset.

    Regularization pictures are only checked for being readable, free of the trigger and of prompt syntax. They are not
    learned, and may be of any kind and number.

    Args:
        dataset: A dataset without copies. What the crop costs is only known if it is bucketed.
        looks: What each picture looks like; None for one that cannot be read.
        count_tokens: Counts the tokens of a caption. Without a text encoder it is None: words and signs are counted,
            of which there are never more than tokens.
    """
    views = dataset.with_pictures(picture for picture in dataset.pictures if not picture.is_regularization)
    again = dataset.further_views()  # a file at a second resolution is no second picture
    dataset = dataset.with_pictures(p for number, p in enumerate(dataset.pictures) if number not in again)
    looks = [look for number, look in enumerate(looks) if number not in again]
    all_names = [name_in(dataset, picture) for picture in dataset.pictures]
    # Regularization pictures are not learned, but trained all the same.
    of_all = [*_unreadable(all_names, looks), *_regularization(dataset, all_names), *check_syntax(dataset, all_names)]
    learned = [number for number, picture in enumerate(dataset.pictures) if not picture.is_regularization]
    dataset = dataset.with_pictures(dataset.pictures[number] for number in learned)
    names, looks = [all_names[number] for number in learned], [looks[number] for number in learned]
    findings = [
        *of_all,
        *_twice(views),
        *_duplicates(dataset, names, looks),
        *check_captions(dataset, names, count_tokens),
        *check_tags(dataset, names),
        *_pixels(dataset, names, looks),
        *_placement(views),
        *_amounts(dataset, names, views),
    ]
    return Examination(tuple(sorted(findings, key=lambda finding: finding.severity)), len(names))



# -- the examinations ----------------------------------------------------------------------------


def _regularization(dataset: Dataset, names: list[str]) -> list[Finding]:
    """Find regularization pictures whose caption has a trigger: they would teach the model not to learn it."""
    triggers = {dataset.trigger_of(picture) for picture in dataset.pictures}
    calling = tuple(
        name for name, picture in zip(names, dataset.pictures, strict=True)
        if picture.is_regularization and any(calls(picture.caption, trigger) for trigger in triggers)
    )  # fmt: skip
    if not calling:
        return []
    listed = " or ".join(map(repr, sorted(triggers - {""})))
    verb = "has" if len(calling) == 1 else "have"
    what = f"{counted(len(calling), 'regularization picture')} {verb} the trigger {listed} in the caption."
    advice = "Remove the trigger there: it stands for what is learned."
    return [Finding(SPOILS, "trigger on kept pictures", what, advice, calling)]


def _unreadable(names: list[str], looks: Sequence[Look | None]) -> list[Finding]:
    bad = tuple(name for name, look in zip(names, looks, strict=True) if look is None)
    if not bad:
        return []
    what = f"{counted(len(bad), 'picture')} cannot be read."
    return [Finding(SPOILS, "unreadable", what, "Save each again in an image editor, or remove it.", bad, bad)]


def _twice(views: Dataset) -> list[Finding]:
    """Find files that are there more than once at one resolution, as when a folder is joined with itself."""
    counts = Counter((name_in(views, picture), views.resolution_of(picture)) for picture in views.pictures)
    again = tuple(dict.fromkeys(name for (name, _), count in counts.items() if count > 1))
    if not again:
        return []
    what = pictures_that(again, "is", "are", "in the dataset more than once.")
    advice = "Use repeats instead to show a picture more often. Each copy is trained."
    return [Finding(NOTE, "there twice", what, advice, again)]


def _duplicates(dataset: Dataset, names: list[str], looks: Sequence[Look | None]) -> list[Finding]:
    # A file listed twice is no near-duplicate of itself: excluding its name would remove both.
    first = {name: number for number, name in reversed(list(enumerate(names)))}
    readable = [number for number, look in enumerate(looks) if look is not None and first[names[number]] == number]
    seen = [look for number in readable if (look := looks[number]) is not None]
    pairs = near_duplicates(seen, most=TOO_MANY_DUPLICATES)
    largest_first = sorted(zip(readable, seen, strict=True), key=lambda one: -_area(dataset.pictures[one[0]]))
    hashes = {number: look.hash for number, look in largest_first}
    groups = _groups(hashes, [(readable[one], readable[two]) for one, two, _ in pairs])
    if not groups:
        return []
    spare = [names[number] for _, *others in groups for number in others]
    mirrored = sum(around for _, _, around in pairs)
    what = f"{counted(len(groups), 'group')} of near-duplicates, {sum(map(len, groups))} pictures in all"
    what += f" ({counted(mirrored, 'pair')} mirrored)." if mirrored else "."
    if len(pairs) >= TOO_MANY_DUPLICATES:
        what += " The search stopped here; there may be more once these are removed."
    files = tuple(" = ".join(names[number] for number in group) for group in groups)
    advice = "Keep one of each group. A picture shown twice is learned twice as hard, background and pose included."
    return [Finding(SPOILS, "near-duplicates", what, advice, files, tuple(spare))]


def _pixels(dataset: Dataset, names: list[str], looks: Sequence[Look | None]) -> list[Finding]:
    found = []
    seen = [(name, look) for name, look in zip(names, looks, strict=True) if look is not None]
    if len(seen) >= 5:
        median = sorted(look.sharpness for _, look in seen)[len(seen) // 2]
        ranked = sorted((look.sharpness, name) for name, look in seen if look.sharpness < BLURRED * median)
        if ranked:
            files = tuple(name for _, name in ranked)
            what = pictures_that(files, "is", "are", "far less sharp than the rest.")
            advice = "Replace what is blurred: blur is learned too."
            found.append(Finding(WEAKENS, "blurred", what, advice, files, files))
    rotated = tuple(name for name, look in seen if look.rotated)
    if rotated:
        what = pictures_that(rotated, "is", "are", "stored rotated, with an EXIF orientation.")
        advice = "Rotate the files if other tools show them sideways. Here they are turned upright."
        found.append(Finding(NOTE, "rotated", what, advice, rotated))
    clear = tuple(name for name, look in seen if look.transparent > 0.001)
    if clear:
        color = "#{:02x}{:02x}{:02x}".format(*dataset.background)
        what = pictures_that(clear, "is", "are", "partly transparent.")
        advice = f"Set another background in Load Dataset if {color} does not suit."
        found.append(Finding(NOTE, "transparent", what, advice, clear))
    return found


def _placement(views: Dataset) -> list[Finding]:
    """Find what the buckets cost. A file at several resolutions is named with the one that costs most."""
    if not views.is_bucketed:
        return []
    found = []
    placed = [(name_in(views, picture), picture) for picture in views.pictures]
    several = len(views.resolutions) > 1
    remarks = [f" at {views.resolution_of(picture)}" if several else "" for _, picture in placed]
    factors = [(enlargement(p), name, remark) for (name, p), remark in zip(placed, remarks, strict=True)]
    small = _worst((factor, name, remark) for factor, name, remark in factors if factor > MOST_ENLARGED)
    if small:
        files = tuple(f"{name} ({factor:.1f} ×{remark})" for factor, name, remark in small)
        what = pictures_that(files, "is smaller than its bucket", "are smaller than their bucket", "and enlarged.")
        advice = "Use larger pictures, or lower the resolution. Soft edges are learned too."
        sound = {name for factor, name, _ in factors if factor <= 2}  # at another resolution
        spare = tuple(name for factor, name, _ in small if name not in sound)
        found.append(Finding(WEAKENS, "too small", what, advice, files, spare))
    shares = [
        (lost_share(p.placement), name, remark) for (name, p), remark in zip(placed, remarks, strict=True)
        if p.placement and p.placement.fit == "crop"
    ]  # fmt: skip
    cut = _worst(one for one in shares if one[0] > MOST_LOST)
    if cut:
        files = tuple(f"{name} ({share:.0%}{remark})" for share, name, remark in cut)
        what = pictures_that(files, "loses", "lose", "more than a third to the crop.")
        advice = "Crop by hand around what matters, or set fit to pad or allow more shapes in Bucket Images."
        found.append(Finding(WEAKENS, "cropped", what, advice, files))
    return found


def _worst(costs: Iterable[tuple[float, str, str]]) -> list[tuple[float, str, str]]:
    """Sort (cost, name, remark) with the largest cost first, and keep the first of each name."""
    first: dict[str, tuple[float, str, str]] = {}
    for cost in sorted(costs, reverse=True):
        first.setdefault(cost[1], cost)
    return list(first.values())


def _amounts(dataset: Dataset, names: list[str], views: Dataset) -> list[Finding]:
    found = []
    concepts = dataset.concepts()
    files: dict[str, list[str]] = {}
    for name, picture in zip(names, dataset.pictures, strict=True):
        files.setdefault(picture.concept, []).append(name)
    for name, pictures in concepts.items():
        there = "There is" if len(pictures) == 1 else "There are"
        owner = f"The concept {name!r} has" if name and len(concepts) > 1 else there
        what = f"{owner} {counted(len(pictures), 'picture')}."
        if len(pictures) < FEWEST:
            advice = "Add pictures: 10 to 30 suit a subject, 20 to 50 a style. Fewer are memorized."
            found.append(Finding(WEAKENS, "few pictures", what, advice, tuple(files[name])))
        elif len(pictures) > MOST_OF_A_SUBJECT:
            fits = f"That {'suits a style' if len(pictures) <= MOST else 'is more than a style needs'} (20 to 50)."
            advice = f"{fits} Of a subject, keep the best 10 to 30: they often teach more than all."
            found.append(Finding(NOTE, "many pictures", what, advice, tuple(files[name])))
    draws = {n: round(sum(picture.repeats for picture in shown)) for n, shown in views.concepts().items()}
    if len(draws) > 1 and max(draws.values()) > UNBALANCED * min(draws.values()):
        most, least = max(draws, key=draws.__getitem__), min(draws, key=draws.__getitem__)
        what = f"{most!r} is seen {draws[most]} times an epoch, {least!r} {draws[least]} times."
        advice = "Raise the repeats of the smaller concept if both matter equally."
        found.append(Finding(WEAKENS, "unbalanced", what, advice, tuple(files[least])))
    return found


def _groups(hashes: dict[int, int], pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Group pictures that look the same or nearly so. The first of each group is the one to keep.

    Every member is close to the first. A chain is no group: each frame of a film is close to the next, but the last
    is another picture than the first.

    Args:
        hashes: Hash of each picture by number, in order of preference.
        pairs: Numbers of pictures that are close to each other.
    """
    same: dict[int, list[int]] = {}
    for number, value in hashes.items():
        same.setdefault(value, []).append(number)
    near: dict[int, set[int]] = {}
    for one, two in pairs:
        near.setdefault(hashes[one], set()).add(hashes[two])
        near.setdefault(hashes[two], set()).add(hashes[one])
    groups, taken = [], set[int]()
    for value, (kept, *copies) in same.items():
        if value in taken:
            continue
        others = near.get(value, set()) - taken - {value}
        spare = sorted([*copies, *(number for other in others for number in same[other])])
        if spare:
            groups.append([kept, *spare])
            taken |= {value, *others}
    return groups


def _area(picture: Picture) -> int:
    return picture.size[0] * picture.size[1]
