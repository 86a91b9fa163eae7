"""The gallery over HTTP: pages, thumbnails and edits of the loaded datasets, and nothing else.

The handlers are for aiohttp, which ComfyUI's server uses; `routes.py` collects them for it.

- GET  /lora_workbench/datasets/{key}?start=0&count=100    a page of pictures, and the total
- GET  /lora_workbench/datasets/{key}/thumbnail?name=…     a small JPEG
- POST /lora_workbench/datasets/{key}/edits                {"edits": [{"name", "revision", "caption"?, "excluded"?}, …]}
- POST /lora_workbench/datasets/{key}/text_files           {"over": whether existing captions are overwritten}

Edits of one request are saved all or none. If somebody else edited a picture in the meantime, the answer is 409 with
its present state. A caption of null restores the original.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from ..data.words import MOST_CHARACTERS
from ..errors import UserError
from .edits_file import Conflict, Entry
from .gallery import Gallery, Unknown, as_json

PREFIX = "/lora_workbench/datasets/{key}"
LARGEST_BODY = 4 << 20  # bytes: ten thousand short captions
MOST_EDITS = 10_000
MOST_DECODED = 4  # thumbnails made at once
MOST_WRITES, WINDOW = 60, 1.0  # requests to write, in this many seconds

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Refused(UserError):
    """A refused request; `status` is the HTTP status."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class GalleryApi:
    """The handlers of one gallery."""

    def __init__(self, gallery: Gallery) -> None:
        self.gallery = gallery
        self._writes: deque[float] = deque(maxlen=MOST_WRITES)
        self._decoding = asyncio.Semaphore(MOST_DECODED)

    def routes(self) -> list[web.RouteDef]:
        """Return the routes to add to a server."""
        return [
            web.get(PREFIX, _answered(self.page)),
            web.get(PREFIX + "/thumbnail", _answered(self.thumbnail)),
            web.post(PREFIX + "/edits", _answered(self.edit)),
            web.post(PREFIX + "/text_files", _answered(self.write_text_files)),
        ]

    async def page(self, request: web.Request) -> web.StreamResponse:
        """Answer with a page of pictures."""
        key = request.match_info["key"]
        start, count = _number(request, "start", 0), _number(request, "count", 100)
        items = await asyncio.to_thread(self.gallery.page, key, start, count)
        total = len(self.gallery.names(key))
        return web.json_response({"total": total, "start": start, "pictures": [as_json(item) for item in items]})

    async def thumbnail(self, request: web.Request) -> web.StreamResponse:
        """Answer with a small JPEG. Its address carries the file's stamp, so a browser may cache it."""
        key, name = request.match_info["key"], request.query.get("name", "")
        async with self._decoding:
            blob = await asyncio.to_thread(self.gallery.thumbnail, key, name)
        return web.Response(body=blob, content_type="image/jpeg", headers={"Cache-Control": "private, max-age=86400"})

    async def edit(self, request: web.Request) -> web.StreamResponse:
        """Save edits."""
        _refuse_other_sites(request)
        self._refuse_floods()
        key = request.match_info["key"]
        body = await _body(request)

        def save() -> list[dict[str, Any]]:
            changes = _read_edits(body, key, self.gallery)
            self.gallery.edits(key).change_all(changes)
            return [as_json(item) for item in self.gallery.items(key, changes)]

        return web.json_response({"pictures": await asyncio.to_thread(save)})

    async def write_text_files(self, request: web.Request) -> web.StreamResponse:
        """Write the captions to .txt files next to the pictures."""
        _refuse_other_sites(request)
        self._refuse_floods()
        body = await _body(request)
        over = body.get("over") if isinstance(body, dict) else None
        if not isinstance(over, bool):
            raise Refused(400, 'The request lacks "over". Set it to true or false.')
        written, problems = await asyncio.to_thread(self.gallery.write_text_files, request.match_info["key"], over)
        return web.json_response({"written": written, "problems": problems})

    def _refuse_floods(self) -> None:
        now = time.monotonic()
        if len(self._writes) == MOST_WRITES and now - self._writes[0] < WINDOW:
            raise Refused(429, f"More than {MOST_WRITES} edits came within {WINDOW:g} s. Wait a moment.")
        self._writes.append(now)


def _answered(handler: Handler) -> Handler:
    """Wrap a handler so that its errors become answers in words."""

    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except Conflict as error:
            entry = {"caption": error.entry.caption, "excluded": error.entry.excluded, "revision": error.entry.revision}
            return web.json_response({"error": str(error), "now": entry}, status=409)
        except Refused as error:
            return web.json_response({"error": str(error)}, status=error.status)
        except Unknown as error:
            return web.json_response({"error": str(error)}, status=404)
        except UserError as error:
            return web.json_response({"error": str(error)}, status=422)

    return answer


def _refuse_other_sites(request: web.Request) -> None:
    """Refuse requests that a page of another site makes the browser send.

    ComfyUI refuses such requests too, but only if the server listens on a loopback address.
    """
    origin, site = request.headers.get("Origin"), request.headers.get("Sec-Fetch-Site")
    # Sec-Fetch-Site comes first: behind a proxy the host's name may differ.
    own = site in ("same-origin", "none") if site else not origin or urlsplit(origin).netloc == request.host
    if not own:
        raise Refused(403, "The request came from another site. Edit captions on ComfyUI's own page.")
    if request.content_type != "application/json":
        # A form of another site cannot send this type.
        raise Refused(415, f"The content type is {request.content_type}. Send application/json.")


async def _body(request: web.Request) -> Any:
    """Return the JSON of a request, read up to `LARGEST_BODY` bytes."""
    if (request.content_length or 0) > LARGEST_BODY:
        raise Refused(413, f"The request is larger than {LARGEST_BODY} bytes.")
    blob = bytearray()
    async for chunk in request.content.iter_chunked(65536):
        blob += chunk
        if len(blob) > LARGEST_BODY:
            raise Refused(413, f"The request is larger than {LARGEST_BODY} bytes.")
    try:
        return json.loads(blob)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"The request is not JSON: {error}.") from error


def _read_edits(body: Any, key: str, gallery: Gallery) -> dict[str, Entry]:
    """Return the changes a request asks for, each as a complete entry."""
    edits = body.get("edits") if isinstance(body, dict) else None
    if not isinstance(edits, list) or not 0 < len(edits) <= MOST_EDITS:
        raise Refused(400, f'"edits" is not a list of 1 to {MOST_EDITS} edits. Send such a list.')
    known = set(gallery.names(key))
    entries = gallery.edits(key).entries()
    changes: dict[str, Entry] = {}
    for edit in edits:
        if not isinstance(edit, dict) or not set(edit) <= {"name", "revision", "caption", "excluded"}:
            raise Refused(400, 'An edit has other fields. Send "name", "revision", and "caption" or "excluded".')
        name, revision = edit.get("name"), edit.get("revision")
        caption, excluded = edit.get("caption"), edit.get("excluded")
        if not isinstance(name, str) or name not in known:
            raise Unknown(f"The dataset has no picture {str(name)[:100]!r}.")
        if name in changes:
            raise Refused(400, f"{name} is in the request twice. Send one edit per picture.")
        if not isinstance(revision, int) or isinstance(revision, bool):
            raise Refused(400, f"{name}: revision is {revision!r:.100}. Send a whole number.")
        if caption is not None and not (isinstance(caption, str) and len(caption) <= MOST_CHARACTERS):
            raise Refused(400, f"{name}: the caption is no text or too long. Send up to {MOST_CHARACTERS} characters.")
        if caption and not _is_text(caption):
            raise Refused(400, f"{name}: the caption has characters that a text file cannot hold. Remove them.")
        if excluded is not None and not isinstance(excluded, bool):
            raise Refused(400, f"{name}: excluded is {excluded!r:.100}. Send true or false.")
        before = entries.get(name, Entry())
        changes[name] = Entry(
            caption if "caption" in edit else before.caption,
            before.excluded if excluded is None else excluded,
            revision,
        )
    return changes


def _is_text(caption: str) -> bool:
    """Return whether a caption can be written and read back: no lone surrogates, no zero bytes."""
    try:
        return "\0" not in caption and bool(caption.encode("utf-8"))
    except UnicodeEncodeError:
        return False


def _number(request: web.Request, name: str, default: int) -> int:
    text = request.query.get(name, str(default))
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise Refused(400, f"{name} is {text[:100]!r}. Send a whole number, 0 or more.")
    return int(text)
