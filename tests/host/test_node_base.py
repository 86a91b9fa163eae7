"""The base class of the nodes, and the widgets made from settings."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from lora_workbench.training.events import Cancelled
from lora_workbench.training.settings import Settings, knob

pytestmark = pytest.mark.usefixtures("comfy_host")


@dataclass(frozen=True)
class Example(Settings):
    """One setting of each kind."""

    folder: str = knob("", "A folder.")
    text: str = knob("a", "A text.", multiline=True)
    kind: str = knob("one", "A choice.", choices=("one", "two"))
    ratio: float = knob(0.5, "A number.", min=0.0, max=1.0, step=0.05, rounded=True)
    rate: float = knob(1e-4, "A number.", min=0.0, max=1.0, step=1e-6, advanced=True)
    seed: int = knob(0, "A seed.", min=0, max=9)
    is_on: bool = knob(False, "A switch.")


def test_each_setting_makes_its_widget() -> None:
    from lora_workbench.nodes.schema import widgets

    made = {widget.id: {**widget.as_dict(), "type": widget.get_io_type()}
            for widget in widgets(Example, folder={"options": ["x", "y"]})}  # fmt: skip
    assert list(made) == ["folder", "text", "kind", "ratio", "rate", "seed", "is_on"]
    expected = {
        "folder": {"type": "COMBO", "options": ["x", "y"], "tooltip": "A folder."},
        "text": {"type": "STRING", "default": "a", "multiline": True},
        "kind": {"type": "COMBO", "default": "one", "options": ["one", "two"]},
        "ratio": {"type": "FLOAT", "default": 0.5, "min": 0.0, "max": 1.0, "step": 0.05},
        "rate": {"type": "FLOAT", "default": 1e-4, "step": 1e-6, "round": 1e-10, "advanced": True},
        "seed": {"type": "INT", "default": 0, "max": 9, "control_after_generate": False},
        "is_on": {"type": "BOOLEAN", "default": False},
    }
    for name, parts in expected.items():
        assert {key: made[name][key] for key in parts} == parts, name
    assert "default" not in made["folder"] and "round" not in made["ratio"] and "advanced" not in made["seed"]


def test_a_cancel_stops_the_queue_and_is_taken() -> None:
    import comfy.model_management as management
    from lora_workbench.nodes.load_dataset import LoadDataset

    class Clone(LoadDataset):  # the host executes one that knows the node's id
        hidden = SimpleNamespace(unique_id="7")

    management.interrupt_current_processing(True)
    try:
        with pytest.raises(management.InterruptProcessingException), Clone.cancellable() as sink:
            assert sink.node_id == "7" and sink.cancelled()
            raise Cancelled
        assert not management.processing_interrupted()
    finally:
        management.interrupt_current_processing(False)


def test_ids_and_category_come_from_the_class() -> None:
    from lora_workbench.nodes import NODES

    for node in NODES:
        schema = node.GET_SCHEMA()
        assert (schema.node_id, schema.category) == (f"LoRAWorkbench_{node.__name__}", "LoRA Workbench")


def test_settings_added_later_are_optional_inputs() -> None:
    """A prompt in API format that was saved before they were there must still be accepted."""
    from lora_workbench.nodes.schema import widgets

    @dataclass(frozen=True)
    class Grown(Example):
        """One that got a setting."""

        more: bool = knob(True, "A switch.")
        last: int = knob(3, "A number.")
        ADDED_FROM = "more"

    made = {widget.id: widget for widget in widgets(Grown)}
    assert [name for name, widget in made.items() if widget.optional] == ["more", "last"]
    assert made["more"].as_dict()["default"] is True


def test_hints_stay_below_whatever_a_node_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    from lora_workbench.training.events import StepEvent
    from lora_workbench.training.host import progress

    shown: list[str] = []
    monkeypatch.setattr(progress, "node_text", lambda _id, text: shown.append(text))
    sink = progress.NodeSink("1")
    sink.tell("Trains 3 steps.")
    sink.hint("3 steps are few.")
    sink.hint("Warm-up is long.")
    sink.phase("encoding pictures", 2, 2)
    sink.step(StepEvent(1, 3, 1, 1, 0.5, 0.5, 1e-4, 1.0, 1.0))
    sink.tell("finished\n3 steps are few.\nWarm-up is long.")
    hints = "3 steps are few.\nWarm-up is long."
    assert shown[0] == "Trains 3 steps." and shown[2] == hints
    assert shown[3] == f"encoding pictures: 2/2\n{hints}"
    assert shown[4].startswith("step 1/3 ·") and shown[4].endswith(f"\n{hints}")
    assert shown[5] == f"finished\n{hints}", "said twice"
