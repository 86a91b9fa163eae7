"""A Chromium for each module, and the gallery opened in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.browser import WAYS, browser, open_page
from support.gallery import Gallery, numbered
from support.server import ComfyServer


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as running:
        yield running


@pytest.fixture(params=WAYS)
def opened(request: Any, chromium: Any, server: ComfyServer) -> Iterator[Callable[[str, int], Gallery]]:
    """Opens the gallery of a fresh folder of so many pictures; errors on the page fail the test."""
    with_vue = request.param
    pages = []

    def make(name: str, count: int) -> Gallery:
        folder = f"{name}_{'vue' if with_vue else 'canvas'}"
        numbered(server.base / "input" / folder / "1_numbers", count)
        context = open_page(chromium, server.url, vue=with_vue)
        page = context.__enter__()
        pages.append((context, page))
        assert page.evaluate("LiteGraph.vueNodesMode") is with_vue
        gallery = Gallery(page, folder)
        gallery.open()
        return gallery

    yield make
    problems = [problem for _, page in pages for problem in page.problems]
    for context, _ in pages:
        context.__exit__(None, None, None)
    assert problems == []
