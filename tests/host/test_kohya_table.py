"""docs/kohya.md: every option of kohya's trainer has a row, and every input that it names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "kohya.md"
OPTIONS = ROOT / "tests" / "data" / "kohya_options.txt"
_ROW = re.compile(r"\| (?P<option>[^|`]+) \| (?P<ours>[^|]+) \| (?P<difference>[^|]*) \| (?P<chinese>[^|]*) \|")


def rows() -> list[dict[str, str]]:
    found = [_ROW.fullmatch(line) for line in PAGE.read_text(encoding="utf-8").splitlines()]
    return [row.groupdict() for row in found if row and row["option"] not in ("kohya", "---")]


def test_every_option_has_a_row_in_the_guis_order():
    wanted = [line for line in OPTIONS.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    assert [row["option"] for row in rows()] == wanted
    assert len(wanted) == len(set(wanted)) >= 54


def test_every_row_says_the_difference_in_both_languages():
    for row in rows():
        assert row["difference"].endswith("."), row
        assert re.search("[\u4e00-\u9fff]", row["chinese"]), row


@pytest.mark.usefixtures("comfy_host")
def test_every_input_exists():
    from lora_workbench.nodes import NODES

    schemas = {node.define_schema().display_name: node.define_schema() for node in NODES}
    inputs = {name: {one.id for one in schema.inputs} for name, schema in schemas.items()}
    for row in rows():
        if row["ours"] == "–":
            continue
        for part in row["ours"].split("; "):
            node, _, named = part.partition(": ")
            assert re.fullmatch(r"(`\w+`(, )?)+", named), row
            assert set(re.findall(r"`(\w+)`", named)) <= inputs[node], row
