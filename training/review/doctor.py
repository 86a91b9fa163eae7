"""Examines a dataset as an experienced trainer would: what will spoil the LoRA, which files, what to do first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ..data.buckets import enlargement, lost_share
from ..data.dataset import Dataset, Picture, name_in
from ..data.words import calls, has_own_caption, least_tokens, split_tags, tag_counts
from ..settings import Settings, knob
from .looks import Look, near_duplicates

LONGEST_CAPTION = 75  # tokens that CLIP reads at a time
MOST_LOST = 1 / 3  # of a picture to the crop
MOST_ENLARGED = 1.2
BLURRED = 0.15  # of the set's median sharpness
FEWEST, MOST_OF_A_SUBJECT, MOST = 10, 30, 50  # pictures of a concept: 10 to 30 suit a subject, 20 to 50 a style
UNBALANCED = 3.0  # times as many draws of one concept as of another
TOO_MANY_DUPLICATES = 2000  # pairs that are listed

# How bad a finding is: what spoils the training, what weakens it, what is worth knowing.
SPOILS, WEAKENS, NOTE = 0, 1, 2


@dataclass(frozen=True)
class ReportSettings(Settings):
    """What happens to the worst pictures."""

    leave_out_the_worst: bool = knob(
        False,
        "Leave out unreadable pictures, spare duplicates, blurred pictures and those enlarged more than twice. The "
        "files stay on disk.",
    )


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong or worth knowing.

    Attributes:
        severity: SPOILS, WEAKENS or NOTE.
        kind: A short name, such as `near-duplicates`.
        what: A sentence on what was found.
        advice: A sentence on what to do.
        files: The pictures it is about, as paths within the dataset.
        exclude: Those of them that may be left out without loss.
    """

    severity: int
    kind: str
    what: str
    advice: str
    files: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True)
class Examination:
    """Everything found, the worst first."""

    findings: tuple[Finding, ...]
    pictures: int

    @property
    def excluded(self) -> frozenset[str]:
        """Pictures that may be left out without loss."""
        return frozenset(name for finding in self.findings for name in finding.exclude)

    def text(self, most: int = 12) -> str:
        """The findings as numbered lines: what, what to do, which files (the first `most`)."""
        if not self.findings:
            return f"{self.pictures} pictures, nothing to complain about."
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

    Args:
        dataset: Bucketed or not; what the crop costs is only known when it is. Without copies.
        looks: What each picture looks like, None for one that cannot be read.
        count_tokens: How many tokens a caption has; None where no text encoder is at hand: then words and signs count,
            which are never more.
    """
    told_names = [name_in(dataset, picture) for picture in dataset.pictures]
    of_all = [*_unreadable(told_names, looks), *_kept(dataset, told_names)]
    # What is only to be kept has no trigger, may be of any kind and number, and is not learned: the rest is not for it.
    learned = [number for number, picture in enumerate(dataset.pictures) if not picture.is_regularization]
    dataset = dataset.with_pictures(dataset.pictures[number] for number in learned)
    names, looks = [told_names[number] for number in learned], [looks[number] for number in learned]
    findings = [
        *of_all,
        *_twice(names),
        *_duplicates(dataset, names, looks),
        *_captions(dataset, names, count_tokens),
        *_tags(dataset, names),
        *_pixels(dataset, names, looks),
        *_placement(dataset, names),
        *_amounts(dataset, names),
    ]
    return Examination(tuple(sorted(findings, key=lambda finding: finding.severity)), len(names))






# -- the examinations ----------------------------------------------------------------------------


def _kept(dataset: Dataset, names: list[str]) -> list[Finding]:
    """Regularisation pictures that would teach the model to keep what it shall learn."""
    triggers = {dataset.trigger_of(picture) for picture in dataset.pictures}
    calling = tuple(
        name for name, picture in zip(names, dataset.pictures, strict=True)
        if picture.is_regularization and any(calls(picture.caption, trigger) for trigger in triggers)
    )  # fmt: skip
    if not calling:
        return []
    told = " or ".join(map(repr, sorted(triggers - {""})))
    what = f"{_count(calling)} that the model shall keep have the trigger {told} in the caption."
    return [Finding(SPOILS, "trigger on kept pictures", what, "Take it out: it calls what is learned.", calling)]


def _unreadable(names: list[str], looks: Sequence[Look | None]) -> list[Finding]:
    bad = tuple(name for name, look in zip(names, looks, strict=True) if look is None)
    if not bad:
        return []
    what = f"{_count(bad)} cannot be read."
    return [Finding(SPOILS, "unreadable", what, "Save them anew or take them out.", bad, bad)]


def _twice(names: list[str]) -> list[Finding]:
    """Files that are in the dataset more than once, as when a folder is joined with itself."""
    again = tuple(name for name, count in Counter(names).items() if count > 1)
    if not again:
        return []
    what = f"{_count(again)} {'is' if len(again) == 1 else 'are'} in the dataset more than once."
    advice = "Each time counts. If that is meant, repeats say it more clearly."
    return [Finding(NOTE, "there twice", what, advice, again)]


def _duplicates(dataset: Dataset, names: list[str], looks: Sequence[Look | None]) -> list[Finding]:
    # A file that is there twice is no near-duplicate of itself: leaving it out would take both.
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
    what = f"{len(groups)} group{_s(groups)} of near-duplicates, {sum(map(len, groups))} pictures in all"
    what += f" ({mirrored} pair{_s(range(mirrored))} mirrored)." if mirrored else "."
    if len(pairs) >= TOO_MANY_DUPLICATES:
        what += " There are more; they are looked for when these are gone."
    files = tuple(" = ".join(names[number] for number in group) for group in groups)
    advice = "Keep one of each: what is there twice is learned twice as hard, background and pose included."
    return [Finding(SPOILS, "near-duplicates", what, advice, files, tuple(spare))]


def _captions(dataset: Dataset, names: list[str], count_tokens: Callable[[str], int] | None) -> list[Finding]:
    found = []
    captions = [picture.caption for picture in dataset.pictures]
    own = [has_own_caption(picture, dataset.trigger_of(picture)) for picture in dataset.pictures]
    empty = tuple(name for name, has in zip(names, own, strict=True) if not has)
    if empty:
        severity = WEAKENS if all(caption.strip() for caption in captions) else SPOILS
        what = f"{_count(empty)} have no caption of their own."
        advice = "Write one (AutoCaption makes a draft): what it does not say becomes part of what is learned."
        found.append(Finding(severity, "no caption", what, advice, empty))
    lacking: dict[str, list[str]] = {}
    for name, picture in zip(names, dataset.pictures, strict=True):
        trigger = dataset.trigger_of(picture)
        if trigger and not calls(picture.caption, trigger):
            lacking.setdefault(trigger, []).append(name)
    for trigger, those in lacking.items():
        what = f"{_count(those)} lack the trigger {trigger!r}."
        found.append(Finding(SPOILS, "no trigger", what, "Put it first in each caption.", tuple(those)))
    written = [picture.caption for picture, has in zip(dataset.pictures, own, strict=True) if has]
    same = {caption for caption, count in Counter(written).items() if count > 1}
    if same and len(set(written)) == 1 and len(written) == len(captions):
        what = "All captions are the same."
        advice = "Say what differs from picture to picture, or all of it becomes part of what is learned."
        found.append(Finding(WEAKENS, "identical captions", what, advice, tuple(names)))
    elif same:
        files = tuple(name for name, caption in zip(names, captions, strict=True) if caption in same)
        what = f"{len(files)} pictures share their caption with another."
        found.append(Finding(NOTE, "identical captions", what, "Say what differs between them.", files))
    count_tokens = count_tokens or least_tokens
    long = tuple(n for n, c in zip(names, captions, strict=True) if count_tokens(c) > LONGEST_CAPTION)
    if long:
        what = f"{_count(long)} have captions of more than {LONGEST_CAPTION} tokens."
        advice = "CLIP reads them in pieces: put what matters first, or shorten them."
        found.append(Finding(NOTE, "long captions", what, advice, long))
    return found


def _tags(dataset: Dataset, names: list[str]) -> list[Finding]:
    """Tags on every picture say nothing, tags on one are not learned; only where captions are lists of tags."""
    captions = [picture.caption for picture in dataset.pictures]
    if len(captions) < 5 or sum(len(split_tags(caption)) for caption in captions) < 3 * len(captions):
        return []
    found, counts = [], tag_counts(captions)
    triggers = {dataset.trigger_of(picture) for picture in dataset.pictures}
    everywhere = [
        tag for tag, count in counts.items()
        if count == len(captions) and not any(calls(tag, trigger) for trigger in triggers)
    ]  # fmt: skip
    if everywhere:
        what = f"On every picture: {', '.join(sorted(everywhere)[:20])}."
        advice = "Remove what belongs to the thing itself, so that the trigger alone stands for it."
        found.append(Finding(WEAKENS, "tags on all", what, advice, tuple(names)))
    once = {tag for tag, count in counts.items() if count == 1}
    if once:
        what = f"{len(once)} of {len(counts)} tags are on one picture only."
        files = tuple(
            f"{name} ({tag})" for name, caption in zip(names, captions, strict=True)
            for tag in dict.fromkeys(split_tags(caption.replace("\n", ","))) if tag in once
        )  # fmt: skip
        advice = "That is fine for what differs; check them for typing errors."
        found.append(Finding(NOTE, "tags on one", what, advice, files))
    return found


def _pixels(dataset: Dataset, names: list[str], looks: Sequence[Look | None]) -> list[Finding]:
    found = []
    seen = [(name, look) for name, look in zip(names, looks, strict=True) if look is not None]
    if len(seen) >= 5:
        median = sorted(look.sharpness for _, look in seen)[len(seen) // 2]
        ranked = sorted((look.sharpness, name) for name, look in seen if look.sharpness < BLURRED * median)
        if ranked:
            files = tuple(name for _, name in ranked)
            what = f"{_count(files)} are far less sharp than the rest."
            found.append(Finding(WEAKENS, "blurred", what, "Look at them; blur is learned too.", files, files))
    rotated = tuple(name for name, look in seen if look.rotated)
    if rotated:
        what = f"{_count(rotated)} are stored turned and marked so."
        advice = "They are turned upright here; other tools may show them lying."
        found.append(Finding(NOTE, "rotated", what, advice, rotated))
    clear = tuple(name for name, look in seen if look.transparent > 0.001)
    if clear:
        color = "#{:02x}{:02x}{:02x}".format(*dataset.background)
        what = f"{_count(clear)} are partly transparent."
        advice = f"They are laid on {color}; the background of LoadDataset sets it."
        found.append(Finding(NOTE, "transparent", what, advice, clear))
    return found


def _placement(dataset: Dataset, names: list[str]) -> list[Finding]:
    if not dataset.is_bucketed:
        return []
    found = []
    placed = [(name, picture) for name, picture in zip(names, dataset.pictures, strict=True) if picture.placement]
    small = sorted(
        ((enlargement(picture), name) for name, picture in placed if enlargement(picture) > MOST_ENLARGED), reverse=True
    )
    if small:
        files = tuple(f"{name} ({factor:.1f} ×)" for factor, name in small)
        what = f"{_count(files)} are too small for their bucket and enlarged."
        advice = "Find larger ones, or lower the resolution: soft edges are learned too."
        found.append(Finding(WEAKENS, "too small", what, advice, files, tuple(name for f, name in small if f > 2)))
    crops = [(p.placement, name) for name, p in placed if p.placement and p.placement.fit == "crop"]
    cut = sorted(((lost_share(crop), name) for crop, name in crops if lost_share(crop) > MOST_LOST), reverse=True)
    if cut:
        files = tuple(f"{name} ({share:.0%})" for share, name in cut)
        what = f"{_count(files)} lose more than a third to the crop."
        advice = "Crop them by hand around what matters, or let BucketImages pad, or have more shapes."
        found.append(Finding(WEAKENS, "cropped", what, advice, files))
    return found


def _amounts(dataset: Dataset, names: list[str]) -> list[Finding]:
    found = []
    concepts = dataset.concepts()
    files: dict[str, list[str]] = {}
    for name, picture in zip(names, dataset.pictures, strict=True):
        files.setdefault(picture.concept, []).append(name)
    for name, pictures in concepts.items():
        called = f"The concept {name!r} has" if name and len(concepts) > 1 else "There are"
        what = f"{called} {len(pictures)} picture{_s(pictures)}."
        if len(pictures) < FEWEST:
            advice = "10 to 30 suit a subject, 20 to 50 a style; fewer are learned by heart."
            found.append(Finding(WEAKENS, "few pictures", what, advice, tuple(files[name])))
        elif len(pictures) > MOST_OF_A_SUBJECT:
            fits = f"That {'suits a style' if len(pictures) <= MOST else 'is more than a style needs'} (20 to 50)"
            advice = f"{fits}; of a subject the best 10 to 30 often teach more than all."
            found.append(Finding(NOTE, "many pictures", what, advice, tuple(files[name])))
    draws = {name: round(sum(picture.repeats for picture in pictures)) for name, pictures in concepts.items()}
    if len(draws) > 1 and max(draws.values()) > UNBALANCED * min(draws.values()):
        most, least = max(draws, key=draws.__getitem__), min(draws, key=draws.__getitem__)
        what = f"{most!r} is seen {draws[most]} times an epoch, {least!r} {draws[least]} times."
        advice = "Give the smaller one more repeats, if they matter alike."
        found.append(Finding(WEAKENS, "unbalanced", what, advice, tuple(files[least])))
    return found


def _groups(hashes: dict[int, int], pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Groups of one picture that is kept, first, and all that look the same or are near to it.

    Not whole chains: of the frames of a film each is near to the next, and the last is another picture than the first.

    Args:
        hashes: Of each picture by number; those that are kept rather come first.
        pairs: Numbers of pictures that are near to each other.
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


def _count(files: Sequence[str]) -> str:
    return f"{len(files)} picture{_s(files)}"


def _s(things: Sequence[object]) -> str:
    return "" if len(things) == 1 else "s"
