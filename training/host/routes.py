"""The gallery of this server: one for all graphs, hung on ComfyUI's own web server."""

from __future__ import annotations

from functools import cache

from ..edits_file import Watched
from ..gallery import Gallery
from ..gallery_api import GalleryApi
from .paths import cache_folder, edits_folder


@cache
def gallery() -> Gallery:
    """The datasets that nodes of this server have shown."""
    return Gallery(edits_folder(), cache_folder() / "thumbnails")


@cache
def watched() -> Watched:
    """Which edits the nodes of this server have read."""
    return Watched()


def hang_up_routes() -> None:
    """Add the gallery's routes to ComfyUI's server; without a server there is nothing to add to."""
    from server import PromptServer  # exists only in a running server

    instance = getattr(PromptServer, "instance", None)
    if instance is not None:
        for route in GalleryApi(gallery()).routes():
            instance.routes.route(route.method, route.path)(route.handler)


def node_id() -> str:
    """The id of the node that ComfyUI asks or runs at this moment, with those of the subgraphs around it."""
    from comfy_execution.utils import get_executing_context

    context = get_executing_context()
    return context.node_id if context else ""
