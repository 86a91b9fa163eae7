"""What others wrote and the pack ships is unchanged."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

VENDOR = Path(__file__).resolve().parents[2] / "web" / "vendor"


def test_vendored_files_are_those_of_their_release() -> None:
    folders = [folder for folder in VENDOR.iterdir() if folder.is_dir()]
    assert [folder.name for folder in folders] == ["uPlot"]
    for folder in folders:
        table = (folder / "README.md").read_text(encoding="utf-8")
        said = dict(re.findall(r"^\| `([^`]+)` \|.*`([0-9a-f]{64})` \|$", table, re.MULTILINE))
        found = {
            file.name: hashlib.sha256(file.read_bytes()).hexdigest()
            for file in folder.iterdir() if file.name != "README.md"
        }  # fmt: skip
        assert said == found
