"""What a person should know about how a folder was read: projects, companions, repeats, and what nothing reads."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ..events import counted
from .companions import CAPTION_SUFFIXES, FIELDS_SUFFIX
from .dataset import REPEATS
from .images import PLUGIN_SUFFIXES
from .tree import Tree

# Repeats from which a number may rather be a year or a camera's folder, and other names that look like these.
_MANY = 100
_DOUBTFUL = re.compile(r"0\d.*|\d+_[\W\d]+|\d+_[a-z]{1,2}")
# A number in another place than kohya's. One at the end may be of a version or a part, so a small one is not meant.
_ELSEWHERE = re.compile(
    r"x?0*([1-9]\d*)[^\d.].*|.*[^\W\d]\)?[-_ ][x(]?([1-9]\d{0,2})\)?(?:[-_ ]?x|[-_ ]repeats?)?", re.IGNORECASE
)
_SMALL = (2, 5)  # the least number that is said, at the start and at the end
_SHOWN = 3  # names in a sentence
_KINDS = 4  # of files that nothing reads, in a sentence


def notes(tree: Tree) -> list[str]:
    """One sentence for each thing worth knowing."""
    return [*_projects(tree), *_companions(tree), *_repeats(tree.named), *_unread(tree)]


def _projects(tree: Tree) -> Iterator[str]:
    for project, left_out in tree.projects.items():
        held = [folder for folder in tree.folders if project in (folder.path, *folder.path.parents)]
        learned = sum(len(folder.pictures) for folder in held if not folder.is_regularization)
        kept = sum(len(folder.pictures) for folder in held if folder.is_regularization)
        text = f"{project.name} is a kohya project: {counted(learned, 'picture')} to learn"
        if kept:
            text += f", {counted(kept, 'picture')} for regularization at the second output"
        yield f"{text}, left out: {', '.join(left_out)}." if left_out else f"{text}."


def _companions(tree: Tree) -> Iterator[str]:
    pictures = [picture for folder in tree.folders for picture in folder.pictures]
    masks = sum(picture.mask is not None for picture in pictures)
    if masks:
        yield f"{counted(masks, 'mask')}, used if Loss Mask follows."
    controls = sum(len(picture.controls) for picture in pictures)
    if controls:
        yield f"{counted(controls, 'control picture')}, not trained."
    if tree.orphans:
        files = counted(len(tree.orphans), "file")
        yield f"{files} of masks or control pictures that fit no picture, or several ({_first(tree.orphans)})."


def _repeats(named: dict[str, float]) -> Iterator[str]:
    """The repeats in use, and names with a number that is none."""
    used = {name: repeats for name, repeats in named.items() if REPEATS.fullmatch(name)}
    doubtful = [name for name, repeats in used.items() if repeats >= _MANY or _DOUBTFUL.fullmatch(name)]
    if doubtful or any(repeats != 1 for repeats in used.values()):
        order = [*doubtful, *(name for name in used if name not in doubtful)]
        listed = _listed([f"{name} × {used[name]:g}" for name in order])
        advice = f" Rename {_listed(doubtful)} if the number is not meant as repeats." if doubtful else ""
        yield f"Repeats: {listed}.{advice}"
    once = [name for name in named if name not in used and _is_number_elsewhere(name)]
    if once:
        yield f"Shown once per epoch: {_listed(once)}. Rename to 20_name for 20 repeats."


def _is_number_elsewhere(name: str) -> bool:
    match = _ELSEWHERE.fullmatch(name)
    return match is not None and (int(match[1] or 0) >= _SMALL[0] or int(match[2] or 0) >= _SMALL[1])


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _unread(tree: Tree) -> Iterator[str]:
    if not tree.unread:
        return
    kinds = Counter(path.suffix.lower() or path.name for path in tree.unread)
    listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(_KINDS))
    rest = sum(kinds.values()) - sum(count for _, count in kinds.most_common(_KINDS))
    text = f"Not read: {listed}{f', {rest} others' if rest else ''} ({_first(tree.unread)})."
    missing = sorted({PLUGIN_SUFFIXES[kind] for kind in kinds if kind in PLUGIN_SUFFIXES})
    if missing:
        text += f" Install {' and '.join(missing)} to read them, or convert them to PNG."
    if any(kind in (*CAPTION_SUFFIXES, FIELDS_SUFFIX) for kind in kinds):
        text += " Name each caption as its picture."
    yield text


def _first(paths: Iterable[Path]) -> str:
    names = [path.name for path in paths]
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
