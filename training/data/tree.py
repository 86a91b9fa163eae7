"""The folders of a dataset as they stand on disk: which pictures they hold, how often each is shown, what is left out.

A folder named `<N>_<class words>` shows everything below it N times per epoch. The nearest such name applies, and the
root's own name counts. Every real folder is read once, however many links lead to it, so that a loop of links ends and
no picture is counted twice by accident.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UserError
from .companions import TABLES, Files, PictureFiles, attach_folder, companion_of, is_system_file, sort_files
from .dataset import REPEATS

# kohya's GUI makes a project of these folders: pictures to learn, regularization pictures, and what a run leaves. The
# other names are those that people give them by hand.
IMG = ("img", "image", "images")
REG = ("reg", "regs", "reg_images", "regularization", "regularization_images", "regularisation")
_LOG = ("log", "logs")
_LEFTOVERS = (*_LOG, "model", "models", "sample", "samples")

_SHOWN = 3  # names in a sentence


@dataclass(frozen=True)
class Folder:
    """One folder: its pictures, and the repeats and class words from its name.

    Attributes:
        path: The folder.
        concept: Its name within the dataset.
        repeats: How often an epoch shows its pictures.
        class_word: The class words; may be empty.
        is_regularization: Whether it is below a project's `reg`.
        files: Its files.
    """

    path: Path
    concept: str
    repeats: float
    class_word: str
    is_regularization: bool
    files: Files

    @property
    def pictures(self) -> list[PictureFiles]:
        """Its pictures with their files."""
        return self.files.pictures


@dataclass
class Tree:
    """Everything below a folder.

    Attributes:
        root: The folder.
        folders: Those with pictures, in an order independent of the file system.
        tables: Files with the captions of many pictures.
        skipped: One sentence for each folder or name that cannot be used.
        projects: The kohya projects, each with the folders that were left out of it.
        unread: Files that nothing reads.
        orphans: Masks and control pictures that fit no picture, or several.
        named: Repeats by the name of each folder with pictures, and 1 for those whose name has none.
    """

    root: Path
    folders: list[Folder] = field(default_factory=list)
    tables: list[Path] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    projects: dict[Path, list[str]] = field(default_factory=dict)
    unread: list[Path] = field(default_factory=list)
    orphans: list[Path] = field(default_factory=list)
    named: dict[str, float] = field(default_factory=dict)


def read_tree(root: Path, first: str = "") -> Tree:
    """Walk a folder and everything below it. No file is opened.

    Args:
        root: The folder.
        first: Ending of captions that comes before the usual ones; may be empty.

    Raises:
        UserError: The folder's own path is not valid text.
    """
    tree = Tree(root)
    for part in reversed((root, *root.parents)):
        if not is_text(part.name):
            raise UserError(not_text(part.parent, [part.name]))
    here: dict[Path, Files] = {}
    for path, names in _walk(tree):
        here[path] = sort_files(path, names, first)
    _attach_companions(root, here)
    for path, files in here.items():
        tree.tables += files.tables
        tree.orphans += files.orphans
        tree.unread += files.unread
        if files.pictures:
            tree.folders.append(_folder(tree, path, files))
    return tree


def is_text(name: str) -> bool:
    """Whether a name is valid text. On Linux a name is bytes, and an old one may be in GBK or Shift-JIS."""
    return name.isascii() or not any("\ud800" <= character <= "\udfff" for character in name)


def readable(name: str) -> str:
    """A name that is not valid text, with its bytes written as numbers."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def not_text(folder: Path, names: list[str]) -> str:
    """The sentence for names in a folder that are not valid text."""
    listed = ", ".join(f"'{readable(name)}'" for name in names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    have = "has a name that is" if len(names) == 1 else "have names that are"
    where = readable(str(folder))
    return (
        f"{listed}{more} in {where} {have} not UTF-8 and cannot be used. Rename, for example from GBK with: "
        f"convmv -f gbk -t utf-8 -r --notest '{where}'"
    )


def number(text: str) -> float:
    """Parse a number. One without a decimal point becomes an int."""
    return float(text) if "." in text else int(text)


def _walk(tree: Tree) -> Iterator[tuple[Path, list[str]]]:
    """Every folder with the names of its files, in an order independent of the file system."""
    seen: dict[str, str] = {}

    def unreadable(error: OSError) -> None:
        tree.skipped.append(f"{error.filename} cannot be opened ({error.strerror}). Change its permissions.")

    for here, names, files in os.walk(tree.root, followlinks=True, onerror=unreadable):
        real = os.path.realpath(here)
        if real in seen:
            tree.skipped.append(f"{here} leads to {seen[real]}, which was read already.")
            names.clear()
            continue
        seen[real] = here
        path = Path(here)
        unusable = sorted(name for name in (*names, *files) if not is_text(name))
        if unusable:
            tree.skipped.append(not_text(path, unusable))
        # Links last, so that a folder is read under its own name, not under that of a link to it.
        usable = {name for name in names if is_text(name) and not is_system_file(name)}
        links = {name for name in usable if os.path.islink(path / name)}
        names[:] = [*sorted(usable - links), *sorted(links)]
        files = [name for name in files if is_text(name)]
        left_out = _left_out_of_project(names)
        if left_out is not None:
            names[:] = [name for name in names if name not in left_out]
            if any(name.lower() in IMG for name in names):
                own = [name for name in files if name.lower() not in TABLES and not is_system_file(name)]
                left_out += ["its own files"] if own else []
                files = [name for name in files if name not in own]
            tree.projects[path] = left_out
        yield path, files


def _left_out_of_project(names: list[str]) -> list[str] | None:
    """The folders of a kohya project that hold nothing to learn; None if these are not the folders of a project.

    `img` makes one with any of the others. A name that people give to other things makes one only with `reg` or `log`.
    """
    lower = {name.lower() for name in names}
    is_sure = bool(lower & {*REG, *_LOG})
    if (IMG[0] in lower and lower & {*REG, *_LEFTOVERS}) or (is_sure and lower & set(IMG)):
        wanted = (*IMG, *REG)
        return [name for name in names if name.lower() not in wanted and not companion_of(name)]
    if is_sure and any(REPEATS.fullmatch(name) for name in names):
        return [name for name in names if name.lower() in _LEFTOVERS]
    return None


def _attach_companions(root: Path, here: dict[Path, Files]) -> None:
    """Give the pictures of folders such as `mask` to the pictures they belong to.

    `mask/10_zorp/a.png` belongs to `10_zorp/a.png`. If there is none, it belongs to `img/10_zorp/a.png`.
    `zorp_mask/a.png` belongs to `zorp/a.png`.
    """
    for path, files in here.items():
        parts = path.relative_to(root).parts
        found = [(at, *companion) for at, part in enumerate(parts) if (companion := companion_of(part))]
        if not (found and files.pictures):
            continue
        at, kind, name = found[0]
        above, below = root.joinpath(*parts[:at]), parts[at + 1 :]
        nearest = above.joinpath(name, *below)
        beside = [] if name else [other for other in here if _is_beside(other, above, below)]
        owners = [other for other in beside if other not in (nearest, path)]
        attach_folder(files, here.get(nearest), [here[other] for other in owners], kind)


def _is_beside(other: Path, above: Path, below: tuple[str, ...]) -> bool:
    """Whether a folder is `below` in some folder of `above` that holds no companions."""
    if above not in other.parents:
        return False
    parts = other.relative_to(above).parts
    return not any(map(companion_of, parts)) and parts[len(parts) - len(below) :] == below


def _folder(tree: Tree, path: Path, files: Files) -> Folder:
    """A folder with pictures, with the repeats and class words of the nearest name that has them."""
    inside = path.relative_to(tree.root).parts
    names = (tree.root.name, *inside)
    matches = [REPEATS.fullmatch(name) for name in names]
    for name, match in zip(names, matches, strict=True):
        tree.named[name] = number(match[1]) if match else 1
    nearest = next((match for match in reversed(matches) if match), None)
    repeats, class_word = (number(nearest[1]), nearest[2]) if nearest else (1, "")
    is_regularization = any(
        inside[len(project.relative_to(tree.root).parts)].lower() in REG for project in tree.projects
        if project in path.parents
    )  # fmt: skip
    if tree.root in tree.projects and inside and inside[0].lower() in IMG:
        inside = inside[1:]  # as if `img` had been chosen
    return Folder(path, "/".join(inside) or tree.root.name, repeats, class_word, is_regularization, files)
