"""The routes for the browser and the gallery behind them, shared by all graphs of this server."""

from __future__ import annotations

from functools import cache

from aiohttp.web import RouteDef

from ..host import shown
from ..host.paths import cache_folder, edits_folder
from .edits_file import Watched
from .gallery import Gallery
from .gallery_api import GalleryApi


@cache
def gallery() -> Gallery:
    """Return the gallery of the datasets that nodes of this server showed."""
    return Gallery(edits_folder(), cache_folder() / "thumbnails")


@cache
def watched() -> Watched:
    """Return the record of the edits that nodes of this server read."""
    return Watched()


def all_routes() -> list[RouteDef]:
    """Return every route of the pack, for the host to add to its server."""
    return [*GalleryApi(gallery()).routes(), shown.route()]
