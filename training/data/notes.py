"""What a person should know about how a folder was read: projects, companions, repeats, and what nothing reads."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..events import counted
from .companions import CAPTION_SUFFIXES, FIELDS_SUFFIX
from .dataset import REPEATS
from .images import PLUGIN_SUFFIXES
from .tree import REG, Tree

_MANY = 100  # repeats from which a number in a folder's name may be meant otherwise
_ALMOST_REPEATS = re.compile(r"(\d{1,3})(?:[-. ]| ?[x×] ?_?)\s*[^\W\d].*|.*[^\W\d][-_ ]x?(\d{1,3})")
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
            text += f", {counted(kept, 'picture')} of {REG} at the output regularization"
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
        yield f"{files} of masks or control pictures without their picture ({_first(tree.orphans)})."


def _repeats(named: dict[str, float]) -> Iterator[str]:
    """Names whose number may be meant otherwise: a year, a camera's folder, a number in another place."""
    doubtful, missed = [], []
    for name, repeats in named.items():
        match = REPEATS.fullmatch(name)
        if match and (repeats >= _MANY or match[1].startswith("0") and repeats >= 1 or not _has_letter(match[2])):
            doubtful.append(f"{name} is shown {repeats:g} times per epoch")
        elif not match and _is_almost_repeats(name):
            missed.append(name)
    if missed:
        doubtful.append(f"{', '.join(missed)} once" if doubtful else f"{', '.join(missed)}: shown once per epoch")
    if doubtful:
        yield f"{', '.join(doubtful)}. N_name in a folder's name means N repeats; rename it if that is not meant."


def _is_almost_repeats(name: str) -> bool:
    match = _ALMOST_REPEATS.fullmatch(name)
    # A small number at the end is rather that of a version or a part.
    return match is not None and (2 <= int(match[1] or 0) <= _MANY or 5 <= int(match[2] or 0) <= _MANY)


def _has_letter(words: str) -> bool:
    return not words or any(map(str.isalpha, words))


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
        text += " A caption has its picture's name."
    yield text


def _first(paths: Iterable[Path]) -> str:
    names = [path.name for path in paths]
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
