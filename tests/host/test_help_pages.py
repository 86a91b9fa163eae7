"""The help pages: one for each node, with up-to-date tables and prose about inputs that exist."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(scope="module")
def nodes(comfy_host: Any) -> list[Any]:
    from lora_workbench.nodes import NODES

    return NODES


@pytest.fixture(scope="module")
def help_pages(comfy_host: Any) -> Any:
    from lora_workbench.lab import help_pages

    return help_pages


def test_every_node_has_a_page_and_every_page_a_node(nodes: list[Any], help_pages: Any) -> None:
    wanted = {help_pages.page_of(node) for node in nodes}
    assert set(help_pages.DOCS.glob("*/*.md")) == wanted
    for node in nodes:
        page = help_pages.page_of(node).read_text(encoding="utf-8")
        assert page.startswith(f"# {node.GET_SCHEMA().display_name}\n"), help_pages.page_of(node)
        assert len(help_pages.prose(page).split()) > 20, f"{help_pages.page_of(node)} says next to nothing"


def test_the_tables_are_up_to_date(nodes: list[Any], help_pages: Any) -> None:
    for node in nodes:
        page = help_pages.page_of(node).read_text(encoding="utf-8")
        assert help_pages.updated(page, node) == page, "Run `python dev.py docs`."


def test_the_prose_names_inputs_that_exist(nodes: list[Any], help_pages: Any) -> None:
    for node in nodes:
        page = help_pages.page_of(node).read_text(encoding="utf-8")
        assert help_pages.unknown_names(page, node) == [], help_pages.page_of(node)


def test_every_input_and_output_has_a_tooltip(nodes: list[Any], help_pages: Any) -> None:
    for node in nodes:
        for row in help_pages.tables(node).splitlines():
            if row.startswith("| `"):
                assert row.rstrip(" |").endswith("."), f"{node.__name__}: {row}"


def test_what_a_stale_page_looks_like(nodes: list[Any], help_pages: Any) -> None:
    node = next(node for node in nodes if node.__name__ == "SaveLoRA")
    page = help_pages.page_of(node).read_text(encoding="utf-8")
    stale = page.replace("| `overwrite`", "| `replace`")
    assert stale != page and help_pages.updated(stale, node) == page
    assert help_pages.unknown_names(page + "\nSet **quality** to taste. Press **Enter**.", node) == ["quality"]
    assert help_pages.updated("# New\n\nProse.", node).startswith(f"# New\n\nProse.\n\n{help_pages.BEGIN}\n")
