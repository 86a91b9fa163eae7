"""The routes that the browser asks, and the gallery behind them: one for all graphs of this server."""

from __future__ import annotations

from functools import cache

from aiohttp.web import RouteDef

from ..host.paths import cache_folder, edits_folder
from .edits_file import Watched
from .gallery import Gallery
from .gallery_api import GalleryApi


@cache
def gallery() -> Gallery:
    """The datasets that nodes of this server have shown."""
    return Gallery(edits_folder(), cache_folder() / "thumbnails")


@cache
def watched() -> Watched:
    """Which edits the nodes of this server have read."""
    return Watched()


def all_routes() -> list[RouteDef]:
    """Every route of the pack, for the host to add to its server."""
    return GalleryApi(gallery()).routes()
