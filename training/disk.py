"""Files on disk: atomic writes, content hashes, and names that are valid on every operating system."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import math
import os
import platform
import stat
import threading
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from .errors import UserError

SUFFIX = ".safetensors"
MAX_NAME = 120
# File systems count bytes, and a Chinese character takes three. 255 is the common limit; a number and the suffix must
# fit as well.
MAX_NAME_BYTES = 200
_RESERVED = {"CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in range(1, 10))}
_BAD_CHARACTERS = '<>:"|?*'

GONE = "gone"  # the stamp of a missing file

_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}  # by their names in a safetensors file

# An unfinished file is named `.lora_workbench-<machine>-<pid>-<thread>-<number>.part`. Lists of models and pictures do
# not show it, no two have the same name, and the name identifies the writer.
_MARK, _PART = ".lora_workbench-", ".part"
_MACHINE = hashlib.sha256(platform.node().encode("utf-8", "replace")).hexdigest()[:8]
_ABANDONED = 24 * 3600  # seconds after which another machine's unfinished file counts as abandoned
_CLOCK = 1.0  # seconds by which the clocks of processes and files may differ
_BUSY = 1.0  # seconds for which a file that is being read is waited for
_calls = itertools.count()


def write_whole(path: Path, content: bytes | str | Callable[[Path], object], *, overwrite: bool = True) -> None:
    """Write a file atomically: it appears complete or not at all, despite crashes and concurrent writers.

    Args:
        path: The file. Missing folders are created.
        content: The content, text as UTF-8; or a function that writes it to the path it receives.
        overwrite: Whether an existing file is replaced.

    Raises:
        FileExistsError: The file exists and `overwrite` is off.
        OSError: The write failed. Nothing is left behind.
    """
    with unfinished(path.parent) as part:
        if callable(content):
            content(part)
        else:
            part.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        give_name(part, path, overwrite=overwrite)


def safetensors_bytes(
    shapes: Mapping[str, Sequence[int]], dtype: str, metadata: Mapping[str, str] | None = None
) -> int:
    """How large a safetensors file is, without making it: its header, padded to 8 bytes, and its tensors.

    Args:
        shapes: Of the tensors, by name.
        dtype: Of all of them: `F32`, `F16` or `BF16`.
        metadata: None: the file has none.
    """
    header: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    for name in sorted(shapes):
        begin, end = end, end + math.prod(shapes[name]) * _ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shapes[name]), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return 8 + -(-len(text) // 8) * 8 + end


@contextlib.contextmanager
def unfinished(folder: Path) -> Iterator[Path]:
    """Yield a temporary path in a folder. A file still there when the block ends is removed."""
    folder.mkdir(parents=True, exist_ok=True)
    who = f"{_MACHINE}-{os.getpid()}-{threading.get_ident():x}-{next(_calls)}"
    part = folder / f"{_MARK}{who}{_PART}"
    try:
        yield part
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def give_name(part: Path, path: Path, *, overwrite: bool = True) -> None:
    """Flush a finished file to disk, then give it its name.

    Raises:
        FileExistsError: The file exists and `overwrite` is off.
        OSError: The disk refused it.
    """
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    if overwrite:
        _replace(part, path)
        return
    try:
        os.link(part, path)  # fails if the file exists, unlike a rename
    except FileExistsError:
        raise
    except OSError:  # exFAT and many network disks have no links
        path.open("xb").close()  # reserves the name, or fails if the file exists
        try:
            _replace(part, path)
        except BaseException:
            with contextlib.suppress(OSError):
                path.unlink()
            raise


def _replace(part: Path, path: Path) -> None:
    """Rename over a file. Windows refuses that while somebody reads the file, so it is tried for a while."""
    until = time.monotonic() + _BUSY
    while True:
        try:
            os.replace(part, path)
            return
        except PermissionError:
            if time.monotonic() > until:
                raise
        time.sleep(0.02)


def give_free_name(part: Path, candidates: Iterable[Path]) -> Path:
    """Give a finished file the first free name among the candidates, and return that name."""
    for path in candidates:
        with contextlib.suppress(FileExistsError):
            give_name(part, path, overwrite=False)
            return path
    raise FileExistsError(errno.EEXIST, "every name is taken", str(part.parent))


def sweep_unfinished(folder: Path, *, deep: bool = True) -> int:
    """Remove unfinished files whose process has ended. Called at start; never raises.

    Args:
        folder: Where to look. It may be missing.
        deep: Whether to look in its subfolders as well.

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
    """Whether no process is still writing an unfinished file."""
    try:
        import psutil  # the host has it, and writing a file does not need it
    except ImportError:
        return False
    machine, _, rest = part.name.removeprefix(_MARK).partition("-")
    number = rest.partition("-")[0]
    try:
        written = part.stat().st_mtime
        if machine != _MACHINE or not (number.isascii() and number.isdigit()):
            return time.time() - written > _ABANDONED
        # Another process may have that pid by now: containers often reuse it.
        return bool(psutil.Process(int(number)).create_time() > written + _CLOCK)
    except psutil.NoSuchProcess:
        return True
    except (OSError, psutil.Error):
        return False


def require_regular(path: Path) -> None:
    """Refuse what only looks like a file: reading a FIFO, a socket or a device could wait for ever.

    Raises:
        OSError: There is no file, or it is not a regular one.
    """
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))


def content_hash(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    require_regular(path)
    with path.open("rb") as file:
        content = hashlib.sha256()
        while block := file.read(1 << 20):
            content.update(block)
    return content.hexdigest()


def disk_trouble(error: Exception, folder: Path) -> str:
    """Explain why a folder could not be written, for the user."""
    number = getattr(error, "errno", None)
    text = str(error)
    if number in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)) or "No space left" in text:
        return f"{folder} could not be written: the disk is full. Free some space and queue again."
    if number in (errno.EACCES, errno.EROFS, errno.EPERM) or "Permission denied" in text:
        return f"ComfyUI has no permission to write to {folder}. Change the folder's permissions and queue again."
    return f"{folder} could not be written ({error}). Check the disk and queue again."


def safe_name(name: str) -> str:
    """Check that a file name is valid on every operating system ComfyUI runs on.

    Args:
        name: The name, with or without `.safetensors`.

    Returns:
        The name without `.safetensors`.

    Raises:
        UserError: It is empty, too long, or contains a path or a character that some system forbids.
    """
    if name.lower().endswith(SUFFIX):
        name = name[: -len(SUFFIX)]
    shown = f"The name {name!r}"
    if not name.strip():
        raise UserError("The name of the LoRA is empty. Enter a name.")
    if "/" in name or "\\" in name:
        raise UserError(f"{shown} contains a slash. Enter a name without folders.")
    bad = [char for char in name if char in _BAD_CHARACTERS or unicodedata.category(char) in ("Cc", "Cs")]
    if bad:
        raise UserError(f"{shown} contains {bad[0]!r}, which some systems forbid in file names. Remove it.")
    if name[0] in ". " or name[-1] in ". ":
        raise UserError(f"{shown} starts or ends with a dot or a space, which some systems drop. Remove it.")
    if name.split(".")[0].strip().upper() in _RESERVED:
        raise UserError(f"{shown} is reserved for a device on Windows. Choose another name.")
    if len(name) > MAX_NAME or len(name.encode()) > MAX_NAME_BYTES:
        raise UserError(
            f"The name that starts with {name[:30]!r} is too long: {len(name)} characters, {len(name.encode())} "
            f"bytes. Use at most {MAX_NAME} characters and {MAX_NAME_BYTES} bytes."
        )
    return name


def file_stamp(path: Path) -> str:
    """A string that changes when the file does, from its size and modification time."""
    try:
        stat = path.stat()
    except OSError:  # a broken link or a file deleted meanwhile; reading it reports the error
        return GONE
    return f"{stat.st_size}-{stat.st_mtime_ns}"
