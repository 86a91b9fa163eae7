"""What the gallery saves: two people at once, two datasets, undo, connections that break. In both renderers."""

from __future__ import annotations

from typing import Any

from support.gallery import QUEUE, numbered
from support.server import ComfyServer


def test_two_people_on_one_picture(opened: Any, server: ComfyServer) -> None:
    gallery = opened("two", 3)
    page = gallery.page
    gallery.card(0).click()
    key = page.evaluate("window.app.graph._nodes[1].properties.lora_workbench_gallery")
    edit = {"name": "1_numbers/0000.png", "revision": 0, "caption": "the other one's"}
    server.request(f"/lora_workbench/datasets/{key}/edits", {"edits": [edit]})
    gallery.text.fill("mine")
    gallery.text.press("Control+Enter")
    gallery.root.get_by_text("Not saved: 1_numbers/0000.png was changed elsewhere in the meantime").wait_for()
    # Both are there: the other's on the picture, mine where I typed it, and nothing but my word writes over theirs.
    gallery.says(0, "the other one's")
    theirs = gallery.root.get_by_text("It is now: “the other one's”")
    theirs.wait_for()
    gallery.text.press("End")
    page.keyboard.type(", more")
    page.wait_for_timeout(1200)  # longer than it waits before it saves by itself
    gallery.text.press("Tab")
    gallery.card(2).click()
    gallery.text.fill("another one")
    gallery.text.press("Control+Enter")
    gallery.says(2, "another one")
    assert gallery.saved(server)["1_numbers/0000.png"]["caption"] == "the other one's"
    gallery.card(0).click()
    assert gallery.text.input_value() == "mine, more"
    assert theirs.is_visible()
    # Escape takes theirs.
    gallery.text.press("Escape")
    assert gallery.text.input_value() == "the other one's"
    assert not theirs.is_visible()
    gallery.text.fill("mine after all")
    gallery.text.press("Control+Enter")
    gallery.says(0, "mine after all")
    # Ctrl+Enter saves mine.
    revision = gallery.saved(server)["1_numbers/0000.png"]["revision"]
    server.request(f"/lora_workbench/datasets/{key}/edits", {"edits": [edit | {"revision": revision}]})
    gallery.text.fill("mine for good")
    gallery.text.press("Control+Enter")
    theirs.wait_for()
    gallery.text.focus()
    gallery.text.press("Control+Enter")
    gallery.says(0, "mine for good")
    assert not theirs.is_visible()
    saved = gallery.saved(server)["1_numbers/0000.png"]
    assert saved["caption"] == "mine for good"
    # As it came: neither.
    server.request(f"/lora_workbench/datasets/{key}/edits", {"edits": [edit | {"revision": saved["revision"]}]})
    gallery.card(0).click()
    gallery.text.fill("mine once more")
    gallery.text.press("Control+Enter")
    theirs.wait_for()
    gallery.root.get_by_role("button", name="Restore original").click()
    gallery.says(0, "red, number 0, picture")
    assert gallery.text.input_value() == "red, number 0, picture"
    assert not theirs.is_visible()


def test_what_was_typed_in_one_dataset_stays_there(opened: Any, server: ComfyServer) -> None:
    gallery = opened("first", 2)
    gallery.card(0).click()
    gallery.text.fill("of the first")
    gallery.text.press("Control+Enter")
    gallery.says(0, "of the first")
    second = server.base / "input" / f"{gallery.folder}_second" / "1_numbers"
    numbered(second, 3)
    (second / "0000.txt").write_text("another thing", encoding="utf-8")
    other = "folder => (window.app.graph._nodes[0].widgets.find(widget => widget.name === 'folder').value = folder)"
    gallery.page.evaluate(other, f"{gallery.folder}_second")
    gallery.page.evaluate(QUEUE)
    gallery.shows("3 of 3")
    gallery.text.focus()
    gallery.text.press("Escape")  # nothing was typed here
    gallery.card(1).click()
    gallery.text.fill("of the second")
    gallery.text.press("Control+Enter")
    gallery.says(1, "of the second")
    assert gallery.captions(0) == ["another thing"]
    assert list(gallery.saved(server)) == ["1_numbers/0001.png"]


def test_what_is_typed_after_an_undo_can_be_undone(opened: Any) -> None:
    gallery = opened("again", 2)
    gallery.card(0).click()
    for text in ("first", "second"):
        gallery.text.fill(text)
        gallery.text.press("Control+Enter")
        gallery.says(0, text)
        gallery.page.keyboard.press("Control+z")
        gallery.says(0, "red, number 0, picture")
    gallery.page.keyboard.press("Control+Shift+z")
    gallery.says(0, "second")


def test_an_edit_of_many_in_any_script_and_an_undo_that_breaks_off(opened: Any) -> None:
    gallery = opened("script", 800)  # more than are sent at a time
    page = gallery.page
    added = "穿着红色围巾的小怪物站在蓝色的背景前面" * 3
    gallery.root.get_by_placeholder("text").fill(added)
    gallery.root.get_by_text("Apply to 800").click()
    gallery.root.get_by_text("800 captions changed.").wait_for()
    sent = []

    def break_off(route: Any) -> None:
        sent.append(route)
        route.continue_() if len(sent) == 1 else route.abort()

    page.route("**/edits", break_off)
    gallery.grid.focus()
    page.keyboard.press("Control+z")
    gallery.root.get_by_text("Not saved").wait_for()
    page.unroute("**/edits")
    page.keyboard.press("Control+z")
    gallery.tag(added).wait_for(state="detached")
    # Both parts have their way forth.
    page.keyboard.press("Control+Shift+z")
    page.keyboard.press("Control+Shift+z")
    page.wait_for_function(
        "([tag, many]) => document.querySelector(`.lwb-tag[data-tag='${tag}'] .lwb-count`)?.textContent === many",
        arg=[added, "800"],
    )


def test_what_cannot_be_saved_stays_typed(opened: Any, server: ComfyServer) -> None:
    gallery = opened("lost", 3)
    page = gallery.page
    page.route("**/edits", lambda route: route.abort())
    gallery.card(0).click()
    gallery.text.fill("typed in vain")
    gallery.card(1).click()
    gallery.root.get_by_text("Not saved").wait_for()
    gallery.card(0).click()
    assert gallery.text.input_value() == "typed in vain"
    page.unroute("**/edits")
    gallery.card(1).click()
    gallery.says(0, "typed in vain")
    # Another run of the graph does not disturb what is being typed.
    gallery.text.fill("in the middle")
    page.evaluate("() => window.app.queuePrompt(0)")
    gallery.says(1, "in the middle")
    assert gallery.text.input_value() == "in the middle"
