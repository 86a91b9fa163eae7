"""The panel of Dataset Report in a real browser, in both of ComfyUI's renderers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image
from support.browser import RENDERERS, build_report, open_page
from support.photos import write_photos
from support.server import ComfyServer


@RENDERERS
def test_the_panel_shows_what_was_found(vue: bool, chromium: Any, server: ComfyServer, tmp_path: Path) -> None:
    folder = server.base / "input" / "report" / "2_photo"
    photo = write_photos(folder, longest=256)[0]
    with Image.open(photo) as image:
        image.save(photo.with_name("again.png"))
    with open_page(chromium, server.url, vue=vue) as page:
        build_report(page, "report")
        panel = page.locator(".lwb-report")
        panel.get_by_text("Queue the graph to examine the dataset.").wait_for()
        page.evaluate("() => window.app.queuePrompt(0)")
        finding = panel.locator("details", has_text="near-duplicates")
        finding.wait_for()
        files = finding.locator("li")
        assert not files.first.is_visible()
        finding.locator("summary").click()
        files.first.wait_for()
        assert "2_photo/again.png" in files.first.inner_text() and photo.name in files.first.inner_text()
        # The worst comes first.
        assert "near-duplicates" in panel.locator("details, p").first.inner_text()
        page.screenshot(path=tmp_path / "report.png")
        assert page.problems == []
