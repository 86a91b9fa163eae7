"""The gallery over HTTP: pages, thumbnails and edits of the datasets that are loaded, and nothing else.

Handlers for aiohttp, which ComfyUI's server stands on; `training/host/routes.py` hangs them up there.

- GET  /lora_workbench/datasets/{key}?start=0&count=100    a page of pictures, and how many there are
- GET  /lora_workbench/datasets/{key}/thumbnail?name=…     a small JPEG
- POST /lora_workbench/datasets/{key}/edits                {"edits": [{"name", "revision", "caption"?, "excluded"?}, …]}
- POST /lora_workbench/datasets/{key}/text_files           {"over": whether captions that are there are written over}

Edits are all saved or none; one that somebody else changed meanwhile is answered with 409 and how it is now. A
caption of null is the one that came.
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

from ..errors import UserError
from .edits_file import LONGEST_CAPTION, Conflict, Entry
from .gallery import Gallery, Unknown, as_json

PREFIX = "/lora_workbench/datasets/{key}"
LARGEST_BODY = 4 << 20  # bytes: ten thousand short captions
MOST_EDITS = 10_000
MOST_DECODED = 4  # thumbnails made at a time
MOST_WRITES, WINDOW = 60, 1.0  # edits taken in so many seconds

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Refused(UserError):
    """A request that is not answered; `status` says why in HTTP."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class GalleryApi:
    """The handlers over one gallery."""

    def __init__(self, gallery: Gallery) -> None:
        self.gallery = gallery
        self._writes: deque[float] = deque(maxlen=MOST_WRITES)
        self._decoding = asyncio.Semaphore(MOST_DECODED)

    def routes(self) -> list[web.RouteDef]:
        """What to add to a server."""
        return [
            web.get(PREFIX, _answered(self.page)),
            web.get(PREFIX + "/thumbnail", _answered(self.thumbnail)),
            web.post(PREFIX + "/edits", _answered(self.edit)),
            web.post(PREFIX + "/text_files", _answered(self.write_text_files)),
        ]

    async def page(self, request: web.Request) -> web.StreamResponse:
        """A page of pictures."""
        key = request.match_info["key"]
        start, count = _number(request, "start", 0), _number(request, "count", 100)
        items = await asyncio.to_thread(self.gallery.page, key, start, count)
        total = len(self.gallery.names(key))
        return web.json_response({"total": total, "start": start, "pictures": [as_json(item) for item in items]})

    async def thumbnail(self, request: web.Request) -> web.StreamResponse:
        """A small JPEG. Its address carries the file's stamp, so a browser may keep it."""
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
        """Write the captions beside the pictures."""
        _refuse_other_sites(request)
        self._refuse_floods()
        body = await _body(request)
        over = body.get("over") if isinstance(body, dict) else None
        if not isinstance(over, bool):
            raise Refused(400, 'The request needs "over", true or false.')
        written, problems = await asyncio.to_thread(self.gallery.write_text_files, request.match_info["key"], over)
        return web.json_response({"written": written, "problems": problems})

    def _refuse_floods(self) -> None:
        now = time.monotonic()
        if len(self._writes) == MOST_WRITES and now - self._writes[0] < WINDOW:
            raise Refused(429, "Too many edits at a time: wait a moment.")
        self._writes.append(now)


def _answered(handler: Handler) -> Handler:
    """A handler whose errors are answered in words."""

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
    """Refuse a page of another site that makes the browser write here.

    ComfyUI refuses such requests as well, but only where the server listens on a loopback address.
    """
    origin, site = request.headers.get("Origin"), request.headers.get("Sec-Fetch-Site")
    # What the browser says of itself first: behind a proxy the host's name may be another one.
    own = site in ("same-origin", "none") if site else not origin or urlsplit(origin).netloc == request.host
    if not own:
        raise Refused(403, "Edits are taken from ComfyUI's own page only.")
    if request.content_type != "application/json":
        raise Refused(415, "Edits are sent as application/json.")  # a form of another site cannot say that


async def _body(request: web.Request) -> Any:
    """The JSON of a request, read no further than allowed."""
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
        raise Refused(400, f"The request is no JSON: {error}.") from error


def _read_edits(body: Any, key: str, gallery: Gallery) -> dict[str, Entry]:
    """What a request asks to change, each entry whole."""
    edits = body.get("edits") if isinstance(body, dict) else None
    if not isinstance(edits, list) or not 0 < len(edits) <= MOST_EDITS:
        raise Refused(400, f'The request needs "edits", a list of 1 to {MOST_EDITS}.')
    known = set(gallery.names(key))
    entries = gallery.edits(key).entries()
    changes: dict[str, Entry] = {}
    for edit in edits:
        if not isinstance(edit, dict) or not set(edit) <= {"name", "revision", "caption", "excluded"}:
            raise Refused(400, 'An edit has "name" and "revision", and "caption" or "excluded".')
        name, revision = edit.get("name"), edit.get("revision")
        caption, excluded = edit.get("caption"), edit.get("excluded")
        if not isinstance(name, str) or name not in known:
            raise Unknown(f"The dataset has no picture {str(name)[:100]!r}.")
        if name in changes:
            raise Refused(400, f"{name} is there twice.")
        if not isinstance(revision, int) or isinstance(revision, bool):
            raise Refused(400, f"{name}: the revision is a whole number.")
        if caption is not None and not (isinstance(caption, str) and len(caption) <= LONGEST_CAPTION):
            raise Refused(400, f"{name}: the caption is a text of at most {LONGEST_CAPTION} characters.")
        if caption and not _is_text(caption):
            raise Refused(400, f"{name}: the caption has signs in it that no file can hold.")
        if excluded is not None and not isinstance(excluded, bool):
            raise Refused(400, f"{name}: excluded is true or false.")
        before = entries.get(name, Entry())
        changes[name] = Entry(
            caption if "caption" in edit else before.caption,
            before.excluded if excluded is None else excluded,
            revision,
        )
    return changes


def _is_text(caption: str) -> bool:
    """Whether a caption can be written and read back: no halves of characters, no zero bytes."""
    try:
        return "\0" not in caption and bool(caption.encode("utf-8"))
    except UnicodeEncodeError:
        return False


def _number(request: web.Request, name: str, default: int) -> int:
    text = request.query.get(name, str(default))
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise Refused(400, f"{name} is a whole number from 0 on.")
    return int(text)
