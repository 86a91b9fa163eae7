"""Fetches a captioner from the Hugging Face hub, only when a person named one to be fetched.

Into a folder `<name>.<commit>.part` that gets its name when every file of it is whole, so that a broken download is
never taken for a model; the next try goes on where the last one stopped. HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE are
honoured.
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

from ..disk import disk_trouble
from ..errors import UserError
from ..events import Cancelled, Sink

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# Files in folders are other formats and examples, but for the second tokenizer of InstructBLIP.
_READ = re.compile(r"(qformer_tokenizer/)?\w[\w.-]*")
# Nothing that could run when it is opened: no .bin, no .pt, no .py.
_SENTENCES: tuple[str, ...] = (".safetensors", ".json", ".txt", ".model", ".jinja")
_TAGS: tuple[str, ...] = (".onnx", ".csv", ".json")
_CHUNK = 1 << 20  # bytes
_PATIENCE = 60  # seconds without a byte
_MB = 1 << 20
_GATED = "{repository} is given only to those who agreed to its terms: do that on its page, and set HF_TOKEN."


@dataclass(frozen=True)
class _File:
    name: str
    size: int
    sha256: str | None
    blob: str | None

    def is_whole(self, path: Path) -> bool:
        """Whether a file is this one: its size, and the hash that the hub tells of it."""
        size = path.stat().st_size
        if size != self.size:
            return False
        # Large files are told by their own hash, small ones by git's.
        wanted, digest = self.sha256, hashlib.sha256()
        if wanted is None:
            wanted, digest = self.blob, hashlib.sha1(b"blob %d\0" % size)
        with path.open("rb") as file:
            while block := file.read(_CHUNK):
                digest.update(block)
        return wanted is None or digest.hexdigest() == wanted


def download(repository: str, root: Path, sink: Sink) -> Path:
    """Return the folder of a captioner below `root`, fetching it if it is not there.

    Args:
        repository: `owner/name` on the hub; it is also the folder's path below `root`.
        root: Where captioners are kept.
        sink: Is told of the progress and asked for a cancel.

    Raises:
        UserError: The name, the repository, the network or the disk does not allow it.
        Cancelled: The person pressed cancel; what was fetched is kept for the next try.
    """
    repository = repository.strip()
    if not _REPOSITORY.fullmatch(repository) or ".." in repository:
        raise UserError(f"The model {repository!r} is written as owner/name, as on huggingface.co.")
    target = root / repository
    if target.is_dir():
        return target
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise UserError(
            f"{repository} is not in {root}, and HF_HUB_OFFLINE forbids to fetch it: unset that, or put the model's "
            f"files into {target} yourself."
        )
    commit, files = _listed(repository)
    # A folder for each state of the repository: files of two do not go together.
    part = target.with_name(f"{target.name}.{commit[:12]}.part")
    total, done = sum(file.size for file in files), 0
    what = f"downloading {repository}, MB"
    try:
        part.mkdir(parents=True, exist_ok=True)
        there = sum(path.stat().st_size for path in part.rglob("*") if path.is_file())
        free = shutil.disk_usage(part).free
        if total - there > free:
            raise UserError(
                f"{repository} needs {total // _MB} MB and {free // _MB} MB are free in {part.parent}: make room there."
            )
        for file in files:
            (part / file.name).parent.mkdir(exist_ok=True)
            for more in _fetched(repository, commit, file, part / file.name):
                done += more
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
            f"{_endpoint()} refused a file of {repository} ({error}): queue again, and it goes on from there."
        ) from error
    except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
        raise UserError(
            f"The download of {repository} broke off ({error}): queue again, and it goes on from there."
        ) from error
    except OSError as error:
        raise UserError(disk_trouble(error, part)) from error
    return target


def _listed(repository: str) -> tuple[str, list[_File]]:
    """The repository's newest commit and which of its files are fetched."""
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise UserError("Downloads need the package huggingface_hub, which comes with transformers.") from error
    try:
        info = hub.HfApi(endpoint=_endpoint()).model_info(repository, files_metadata=True)
    except hub.errors.GatedRepoError as error:
        raise UserError(_GATED.format(repository=repository)) from error
    except hub.errors.RepositoryNotFoundError as error:
        raise UserError(f"There is no model {repository} on {_endpoint()}, or it is not public.") from error
    except Exception as error:  # of whatever HTTP library the hub's own uses at the moment
        raise UserError(f"{_endpoint()} cannot be asked for {repository} ({error}): is the network up?") from error
    files = [_file(sibling) for sibling in info.siblings or () if _READ.fullmatch(sibling.rfilename)]
    suffixes = {Path(file.name).suffix for file in files}
    if {".onnx", ".csv"} <= suffixes:
        wanted = _TAGS
    elif ".safetensors" in suffixes:
        wanted = _SENTENCES
    else:
        raise UserError(f"{repository} has neither .safetensors nor .onnx with .csv: it is no captioner we can read.")
    return str(info.sha), [file for file in files if Path(file.name).suffix in wanted]


def _file(sibling: Any) -> _File:
    lfs = sibling.lfs
    return _File(sibling.rfilename, int(sibling.size or 0), lfs.sha256 if lfs else None, sibling.blob_id)


def _fetched(repository: str, commit: str, file: _File, path: Path) -> Iterator[int]:
    """Fetch a file, yielding how many bytes came, those of an earlier try first."""
    if path.is_file():  # it got its name when it was whole
        yield file.size
        return
    part = path.with_name(f"{path.name}.part")
    there = part.stat().st_size if part.is_file() else 0
    if there and there >= file.size:  # all of it came, or something else: there is nothing to go on with
        if file.is_whole(part):
            part.rename(path)
            yield file.size
            return
        part.unlink(missing_ok=True)
        there = 0
    request = urllib.request.Request(
        f"{_endpoint()}/{repository}/resolve/{commit}/{urllib.parse.quote(file.name)}",
        headers={"User-Agent": "lora-workbench"},
    )
    token = importlib.import_module("huggingface_hub").get_token()
    if token:
        # Not sent on to where the hub's answer leads.
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    if there:
        request.add_header("Range", f"bytes={there}-")
    with urllib.request.urlopen(request, timeout=_PATIENCE) as answer, part.open("ab") as sink:
        if there and answer.status != 206:  # sent from the beginning all the same
            sink.truncate(0)
            there = 0
        elif there:
            yield there
        while block := answer.read(_CHUNK):
            sink.write(block)
            yield len(block)
    if not file.is_whole(part):
        size = part.stat().st_size
        if size >= file.size:
            part.unlink()  # no end of it can be right
        raise urllib.error.URLError(f"{file.name} came with {size} of {file.size} bytes, or damaged")
    part.rename(path)


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"
