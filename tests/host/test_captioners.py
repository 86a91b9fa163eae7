"""The list of captioners: which one a model gets, and what a new one takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from lora_workbench.training.errors import SettingError, UserError
from lora_workbench.training.settings import Settings, knob
from PIL import Image
from support.captioners import tiny_blip
from support.taggers import tagger

pytestmark = pytest.mark.usefixtures("comfy_host")


@dataclass(frozen=True)
class ToySettings(Settings):
    """A captioner as simple as can be, with one setting."""

    shouting: int = knob(1, "Number of exclamation marks.", min=0, max=3)


class Toy:
    """Captions every picture with the text in toy.txt."""

    batch = 4

    def __init__(self, folder: Path, settings: ToySettings) -> None:
        self.text = (folder / "toy.txt").read_text(encoding="utf-8") + "!" * settings.shouting
        self.identity = f"toy|{self.text}"

    def caption(self, pictures: Sequence[Image.Image]) -> list[str]:
        return [self.text for _ in pictures]


@pytest.fixture
def sources() -> Any:
    from lora_workbench.training.captions import sources

    return sources


def test_a_new_captioner_is_a_file_and_an_entry(sources: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lora_workbench.nodes.auto_caption import AutoCaption

    entry = sources.Source(lambda folder: (folder / "toy.txt").is_file(), Toy, ToySettings)
    monkeypatch.setattr(sources, "CAPTIONERS", [*sources.CAPTIONERS, entry])
    import folder_paths

    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    folder = tmp_path / "LLM" / "toy"
    for name in ("toy", "toy.part", "empty"):
        (tmp_path / "LLM" / name).mkdir(parents=True)
    for name in ("toy", "toy.part"):
        (tmp_path / "LLM" / name / "toy.txt").write_text("a thing", encoding="utf-8")
    assert list(sources.installed_captioners()) == ["toy"]
    toy = sources.make_captioner(folder, {"shouting": 2, "prompt": "of another captioner"})
    assert toy.caption([Image.new("RGB", (8, 8))]) == ["a thing!!"]
    inputs = [widget.id for widget in AutoCaption.define_schema().inputs]
    assert inputs.index("escape_brackets") < inputs.index("download") < inputs.index("shouting") == len(inputs) - 1
    with pytest.raises(SettingError, match="shouting is 4. Set it to at most 3"):
        sources.make_captioner(folder, {"shouting": 4})


def test_every_model_gets_its_captioner(sources: Any, tmp_path: Path) -> None:
    tagger(tmp_path / "tagger")
    tiny_blip(tmp_path / "blip")
    values = {"prompt": "", "max_tokens": 16, "general_threshold": 0.4}
    made = {name: sources.make_captioner(tmp_path / name, values) for name in ("tagger", "blip")}
    assert {name: type(captioner).__name__ for name, captioner in made.items()} == {
        "tagger": "OnnxTagger", "blip": "VisionLanguage"}  # fmt: skip
    assert made["tagger"].settings.general_threshold == 0.4 and made["blip"].settings.max_tokens == 16
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty holds no captioner.*Choose another model"):
        sources.make_captioner(tmp_path / "empty", values)
    with pytest.raises(UserError, match="This CLIP cannot write text"):
        sources.make_captioner(object(), values)
