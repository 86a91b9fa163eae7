"""Download a captioner from the Hugging Face hub, only when the user named one.

Files go into a folder `<name>.<commit>.part`, which gets its final name when all are complete. So a broken download is
never mistaken for a model, and the next try resumes it. HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE are honoured.
"""

from __future__ import annotations

import hashlib
import http.client
import importlib
import os
import re
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..disk import content_hash, disk_trouble
from ..errors import UserError
from ..events import Cancelled, Sink

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# Subfolders hold other formats and examples, except InstructBLIP's second tokenizer.
_USED = re.compile(r"(qformer_tokenizer/)?\w[\w.-]*")
# No format that can run code when it is opened: no .bin, no .pt, no .py.
_SENTENCES: tuple[str, ...] = (".safetensors", ".json", ".txt", ".model", ".jinja")
_TAGS: tuple[str, ...] = (".onnx", ".csv", ".json")
_CHUNK = 1 << 20  # bytes
_TIMEOUT = 60  # seconds without a byte
_MB = 1 << 20
_GATED = "{repository} is restricted to users who agreed to its terms. Agree on its page, and set HF_TOKEN."


@dataclass(frozen=True)
class _File:
    name: str
    size: int
    sha256: str | None
    blob: str | None

    def is_whole(self, path: Path) -> bool:
        """Whether a file is complete: its size and hash match what the hub reports."""
        if path.stat().st_size != self.size:
            return False
        # The hub reports SHA-256 for large files and git's blob hash for small ones.
        if self.sha256 is not None:
            return content_hash(path) == self.sha256
        return self.blob in (None, hashlib.sha1(b"blob %d\0" % self.size + path.read_bytes()).hexdigest())


def download(repository: str, root: Path, sink: Sink) -> Path:
    """Return the folder of a captioner below `root`, downloading it if it is missing.

    Args:
        repository: `owner/name` on the hub; also the folder's path below `root`.
        root: The folder of captioners.
        sink: Receives the progress and is checked for a cancel.

    Raises:
        UserError: The name is invalid, or the repository, the network or the disk failed.
        Cancelled: The user pressed cancel. The next try resumes the download.
    """
    repository = repository.strip()
    if not _REPOSITORY.fullmatch(repository) or ".." in repository:
        raise UserError(
            f"{repository!r} is not a Hugging Face name. Use owner/name, for example SmilingWolf/wd-vit-tagger-v3."
        )
    target = root / repository
    if target.is_dir():
        return target
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise UserError(
            f"{repository} is not in {root}, and HF_HUB_OFFLINE forbids downloads. Unset HF_HUB_OFFLINE, or copy the "
            f"model's files into {target}."
        )
    commit, files = _list_files(repository)
    # One folder per commit, because files of two commits do not fit together.
    part = target.with_name(f"{target.name}.{commit[:12]}.part")
    total, done = sum(file.size for file in files), 0
    what = f"downloading {repository}, MB"
    try:
        part.mkdir(parents=True, exist_ok=True)
        present = sum(path.stat().st_size for path in part.rglob("*") if path.is_file())
        free = shutil.disk_usage(part).free
        if total - present > free:
            raise UserError(
                f"{repository} needs {total // _MB} MB, and {part.parent} has {free // _MB} MB free. Free some space."
            )
        for file in files:
            (part / file.name).parent.mkdir(exist_ok=True)
            for count in _fetch(repository, commit, file, part / file.name):
                done += count
                sink.phase(what, min(done, total) // _MB, max(1, total // _MB))
                if sink.cancelled():
                    raise Cancelled
        part.rename(target)
        for stale in target.parent.glob(f"{target.name}.*.part"):
            shutil.rmtree(stale, ignore_errors=True)
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            raise UserError(_GATED.format(repository=repository)) from error
        raise UserError(
            f"{_endpoint()} refused a file of {repository} ({error}). Queue again to resume the download."
        ) from error
    except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
        raise UserError(
            f"The download of {repository} was interrupted ({error}). Queue again to resume it."
        ) from error
    except OSError as error:
        raise UserError(disk_trouble(error, part)) from error
    return target


def _list_files(repository: str) -> tuple[str, list[_File]]:
    """The repository's newest commit, and the files of it to download."""
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise UserError(
            "The package huggingface_hub, which downloads need, is not installed. Install ComfyUI's requirements."
        ) from error
    try:
        info = hub.HfApi(endpoint=_endpoint()).model_info(repository, files_metadata=True)
    except hub.errors.GatedRepoError as error:
        raise UserError(_GATED.format(repository=repository)) from error
    except hub.errors.RepositoryNotFoundError as error:
        raise UserError(f"There is no public model {repository} on {_endpoint()}. Check the name.") from error
    except Exception as error:  # its type depends on the HTTP library that huggingface_hub uses
        raise UserError(
            f"{_endpoint()} did not answer for {repository} ({error}). Check the network and queue again."
        ) from error
    files = [_file(sibling) for sibling in info.siblings or () if _USED.fullmatch(sibling.rfilename)]
    suffixes = {Path(file.name).suffix for file in files}
    if {".onnx", ".csv"} <= suffixes:
        wanted = _TAGS
    elif ".safetensors" in suffixes:
        wanted = _SENTENCES
    else:
        raise UserError(
            f"{repository} is not a usable captioner: it has neither .safetensors nor .onnx with .csv. "
            "Choose another model."
        )
    return str(info.sha), [file for file in files if Path(file.name).suffix in wanted]


def _file(sibling: Any) -> _File:
    lfs = sibling.lfs
    return _File(sibling.rfilename, int(sibling.size or 0), lfs.sha256 if lfs else None, sibling.blob_id)


def _fetch(repository: str, commit: str, file: _File, path: Path) -> Iterator[int]:
    """Download a file, yielding the bytes received, first those of an earlier try."""
    if path.is_file():  # named so only when complete
        yield file.size
        return
    part = path.with_name(f"{path.name}.part")
    present = part.stat().st_size if part.is_file() else 0
    if present and present >= file.size:  # complete or wrong: nothing to resume
        if file.is_whole(part):
            part.rename(path)
            yield file.size
            return
        part.unlink(missing_ok=True)
        present = 0
    request = urllib.request.Request(
        f"{_endpoint()}/{repository}/resolve/{commit}/{urllib.parse.quote(file.name)}",
        headers={"User-Agent": "lora-workbench"},
    )
    token = importlib.import_module("huggingface_hub").get_token()
    if token:
        # Unredirected: the token must not reach the servers the hub redirects to.
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    if present:
        request.add_header("Range", f"bytes={present}-")
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer, part.open("ab") as output:
        if present and answer.status != 206:  # the server ignored the range and sends the whole file
            output.truncate(0)
            present = 0
        elif present:
            yield present
        while block := answer.read(_CHUNK):
            output.write(block)
            yield len(block)
    if not file.is_whole(part):
        size = part.stat().st_size
        if size >= file.size:
            part.unlink()  # wrong content cannot be resumed
        raise urllib.error.URLError(f"{file.name} is incomplete or damaged: {size} of {file.size} bytes received")
    part.rename(path)


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"
