"""Files: written whole or not at all, told apart, and named so that every system takes the name."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import platform
import threading
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from .errors import UserError

SUFFIX = ".safetensors"
MAX_NAME = 120
# File systems count bytes, of which a Chinese character takes three; 255 is common, and a number, the suffix
# and the mark of an unfinished file come on top.
MAX_NAME_BYTES = 200
_RESERVED = {"CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in range(1, 10))}
_BAD_CHARACTERS = '<>:"|?*'

GONE = "gone"  # the stamp of a file that is not there

# An unfinished file is `.lora_workbench-<machine>-<pid>-<thread>-<number>.part`: hidden from every list of models and
# pictures, never the same twice, and it says who would still be writing it.
_MARK, _PART = ".lora_workbench-", ".part"
_MACHINE = hashlib.sha256(platform.node().encode("utf-8", "replace")).hexdigest()[:8]
_ABANDONED = 24 * 3600  # seconds after which another machine's unfinished file is taken for abandoned
_calls = itertools.count()


def write_whole(path: Path, content: bytes | str | Callable[[Path], object], *, overwrite: bool = True) -> None:
    """Write a file that is there whole or not at all, whatever breaks off and whoever else writes it.

    Args:
        path: The file. Folders that are missing are made.
        content: What stands in it, text as UTF-8; or what writes it to the path it is given.
        overwrite: Whether a file of that name is replaced.

    Raises:
        FileExistsError: There is a file of that name, and it is not to be replaced.
        OSError: The disk does not allow it. Nothing is left behind.
    """
    with unfinished(path.parent) as part:
        if callable(content):
            content(part)
        else:
            part.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        give_name(part, path, overwrite=overwrite)


@contextlib.contextmanager
def unfinished(folder: Path) -> Iterator[Path]:
    """A path in a folder for a file that has no name yet; what is still there when the block ends is removed."""
    folder.mkdir(parents=True, exist_ok=True)
    who = f"{_MACHINE}-{os.getpid()}-{threading.get_ident():x}-{next(_calls)}"
    part = folder / f"{_MARK}{who}{_PART}"
    try:
        yield part
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def give_name(part: Path, path: Path, *, overwrite: bool = True) -> None:
    """Give a finished file its name, once its content is on the disk.

    Raises:
        FileExistsError: There is a file of that name, and it is not to be replaced.
        OSError: The disk does not allow it.
    """
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    if overwrite:
        os.replace(part, path)
        return
    try:
        os.link(part, path)  # fails where a file is there, unlike a rename
    except FileExistsError:
        raise
    except OSError:  # exFAT and many network disks know no links
        _copy_to_new(part, path)


def give_free_name(part: Path, candidates: Iterable[Path]) -> Path:
    """Give a finished file the first of some names that is free, and return it."""
    for path in candidates:
        with contextlib.suppress(FileExistsError):
            give_name(part, path, overwrite=False)
            return path
    raise FileExistsError(errno.EEXIST, "every name is taken", str(part.parent))


def _copy_to_new(part: Path, path: Path) -> None:
    """Write a file that must not be there yet; one that could not be written whole is removed again."""
    fresh = path.open("xb")
    try:
        with fresh:
            fresh.write(part.read_bytes())
            fresh.flush()
            os.fsync(fresh.fileno())
    except OSError:
        with contextlib.suppress(OSError):
            path.unlink()
        raise


def sweep_unfinished(folder: Path, *, deep: bool = True) -> int:
    """Remove the unfinished files of processes that are gone. Called at start; never raises.

    Args:
        folder: Where to look; one that is not there has none.
        deep: Whether in the folders below it as well.

    Returns:
        How many were removed.
    """
    removed = 0
    for here, names, files in os.walk(folder):
        if not deep:
            names.clear()
        for name in files:
            if name.startswith(_MARK) and name.endswith(_PART) and _is_stale(Path(here, name)):
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(here, name))
                    removed += 1
    return removed


def _is_stale(part: Path) -> bool:
    """Whether nobody is writing an unfinished file any more."""
    import psutil  # the host has it; what only writes needs it not

    machine, _, rest = part.name.removeprefix(_MARK).partition("-")
    number = rest.partition("-")[0]
    try:
        written = part.stat().st_mtime
        if machine != _MACHINE or not number.isdigit():
            return time.time() - written > _ABANDONED
        # A process with that number may have been started since: in a container it is often the same one.
        return bool(psutil.Process(int(number)).create_time() > written)
    except psutil.NoSuchProcess:
        return True
    except (OSError, psutil.Error):
        return False


def content_hash(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        content = hashlib.sha256()
        while block := file.read(1 << 20):
            content.update(block)
    return content.hexdigest()


def disk_trouble(error: Exception, folder: Path) -> str:
    """Say in one sentence why a folder could not be written."""
    number = getattr(error, "errno", None)
    text = str(error)
    if number == errno.ENOSPC or "No space left" in text:
        return f"The disk is full: {folder} could not be written. Free some space and queue again."
    if number in (errno.EACCES, errno.EROFS, errno.EPERM) or "Permission denied" in text:
        return f"ComfyUI may not write to {folder}. Change the folder's permissions and queue again."
    return f"{folder} could not be written: {error}."


def safe_name(name: str) -> str:
    """Check a name that a file is to be called, on every system ComfyUI runs on.

    Args:
        name: The name, with or without `.safetensors`.

    Returns:
        The name without `.safetensors`.

    Raises:
        UserError: It is empty, holds a path, a character that some system forbids, or is too long.
    """
    if name.lower().endswith(SUFFIX):
        name = name[: -len(SUFFIX)]
    shown = f"The name {name!r}"
    if not name.strip():
        raise UserError("The name is empty: say what the LoRA is to be called.")
    if "/" in name or "\\" in name:
        raise UserError(f"{shown} holds a slash: give a name without folders.")
    bad = [char for char in name if char in _BAD_CHARACTERS or unicodedata.category(char) in ("Cc", "Cs")]
    if bad:
        raise UserError(f"{shown} holds {bad[0]!r}, which not every system allows in file names.")
    if name[0] in ". " or name[-1] in ". ":
        raise UserError(f"{shown} begins or ends with a dot or a space, which some systems drop.")
    if name.split(".")[0].strip().upper() in _RESERVED:
        raise UserError(f"{shown} is reserved for a device on Windows: choose another.")
    if len(name) > MAX_NAME or len(name.encode()) > MAX_NAME_BYTES:
        raise UserError(
            f"The name that begins {name[:30]!r} is too long: it has {len(name)} characters and "
            f"{len(name.encode())} bytes; {MAX_NAME} characters and {MAX_NAME_BYTES} bytes fit everywhere."
        )
    return name


def file_stamp(path: Path) -> str:
    """What changes when a file does: size and modification time."""
    try:
        stat = path.stat()
    except OSError:  # a link to nowhere, or a file deleted meanwhile: reading it says so in words
        return GONE
    return f"{stat.st_size}-{stat.st_mtime_ns}"
