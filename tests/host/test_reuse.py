"""A finished run is found by its inputs and not trained again; whatever differs is trained."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.session import loaded, photos, train

pytestmark = pytest.mark.usefixtures("comfy_host")

SETTINGS: dict[str, Any] = {"precision": "fp32", "if_run_before": "use its LoRA"}


class Heard:
    """A sink that records every sentence and every line of a log."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def phase(self, *_: Any) -> None:
        pass

    def step(self, _: Any) -> None:
        pass

    def tell(self, text: str) -> None:
        self.told.append(text)

    hint = tell

    def record(self, run: str, line: dict[str, Any]) -> None:
        self.lines.append((run, line))

    def cancelled(self) -> bool:
        return False

    def take_cancel(self) -> None:
        pass


@dataclass
class Inputs:
    """What one run is given."""

    checkpoint: Path
    parts: tuple[Any, Any, Any]
    pictures: Path
    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)
    change: Callable[[Any], Any] = lambda dataset: dataset

    def train(self) -> tuple[Any, Heard]:
        sink = Heard()
        dataset = self.change(photos(self.pictures))
        return train(self.parts, dataset, self.folder, sink, more=self.more, **{**SETTINGS, **self.settings}), sink


@pytest.fixture(scope="module")
def first(comfy_host: Any, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Inputs, Any]:
    """A finished run, and what it was given."""
    folder = tmp_path_factory.mktemp("first")
    inputs = Inputs(tiny_checkpoint, loaded(tiny_checkpoint), folder / "1_photo", folder)
    return inputs, inputs.train()[0]


@pytest.fixture
def inputs(first: Any, tmp_path: Path) -> Inputs:
    """The inputs of the finished run once more, with a copy of its folder."""
    given, _ = first
    for name in ("runs", "1_photo"):
        shutil.copytree(given.folder / name, tmp_path / name)
    (tmp_path / "cache").symlink_to(given.folder / "cache")
    return replace(given, folder=tmp_path, pictures=tmp_path / "1_photo", settings={}, more={})


def with_lora(it: Inputs, strength: float = 1.0) -> Any:
    """The MODEL with a LoRA on it whose tensors do not depend on the run."""
    from lora_workbench.training.host.apply import apply_lora
    from lora_workbench.training.run.checkpoints import checkpoints, load

    lora = load(checkpoints(it.folder / "runs" / "run")[-1])
    return apply_lora(it.parts[0], it.parts[1], lora, strength, strength)[0]


def with_sampling(model: Any, shift: float) -> Any:
    """The MODEL with another noise schedule, as a ModelSampling node leaves it."""
    import comfy.model_sampling

    class ModelSampling(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
        pass

    ModelSampling.__module__ = "comfy_extras.nodes_model_advanced"
    patched, sampling = model.clone(), ModelSampling(model.model.model_config)
    sampling.set_parameters(shift=shift)
    patched.add_object_patch("model_sampling", sampling)
    return patched


# -- found ---------------------------------------------------------------------------------------


def assert_is_found(it: Inputs, result: Any) -> Any:
    before = sorted(path.name for path in (it.folder / "runs").iterdir())
    found, sink = it.train()
    assert sorted(path.name for path in (it.folder / "runs").iterdir()) == before, "it was trained again"
    assert found.lora.keys() == result.lora.keys()
    assert all(torch.equal(found.lora[key], result.lora[key]) for key in result.lora)
    assert (found.summary.id, found.summary.losses) == (result.summary.id, result.summary.losses)
    (told,) = sink.told
    assert told.startswith("Uses the LoRA of the run runs/run") and "if_run_before" in told
    assert sink.lines == [(result.summary.id, {"kind": "reused", "run": result.summary.id})]
    return found


def test_the_same_inputs_are_found(inputs, first):
    """What is handed on is what the run handed on: names of layers, key map and metadata too."""
    result = first[1]
    found = assert_is_found(inputs, result)
    assert found.lora.layers == result.lora.layers and found.lora.key_map == result.lora.key_map
    assert result.lora.metadata.items() - found.lora.metadata.items() <= {
        ("ss_training_finished_at", result.lora.metadata["ss_training_finished_at"])
    }
    assert found.lora.file == "" and found.lora.run_name == "run"


def moved(it: Inputs) -> None:
    it.pictures = it.pictures.rename(it.folder / "somewhere_else")


def renamed(it: Inputs) -> None:
    it.settings["name"] = "another name"


def folder_renamed(it: Inputs) -> None:
    (it.folder / "runs" / "run").rename(it.folder / "runs" / "run of may")


def irrelevant(it: Inputs) -> None:
    it.settings |= {"warn_about_steps": False, "gradient_checkpointing": True, "on_cancel": "stop the queue"}


def samples(it: Inputs) -> None:
    from lora_workbench.training.watch import SampleOptions, Watch

    it.more["watch"] = Watch(samples=SampleOptions(prompts="zorp", every_epochs=0, at_start=False))


@pytest.mark.parametrize("change", [moved, renamed, folder_renamed, irrelevant, samples])
def test_what_does_not_matter_is_found(change, inputs, first):
    change(inputs)
    found = assert_is_found(inputs, first[1])
    name = inputs.settings.get("name", "run")
    assert found.lora.run_name == found.lora.metadata["modelspec.title"] == name


def test_a_fresh_process_finds_it(inputs, first, host_path, tiny_checkpoint):
    code = (
        "import sys, conftest; from pathlib import Path; sys.argv = sys.argv[:1];"
        f"sys.path.insert(0, {str(host_path)!r});"
        "import comfy.options; comfy.options.enable_args_parsing(False);"
        "from comfy.cli_args import args; args.cpu = True;"
        "from support.session import loaded, photos, train;"
        f"found = train(loaded(Path({str(tiny_checkpoint)!r})), photos(Path({str(inputs.pictures)!r})), "
        f"Path({str(inputs.folder)!r}), **{SETTINGS!r}); print('found', found.summary.id)"
    )
    tests = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=tests, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"found {first[1].summary.id}"


def test_a_model_with_a_lora_and_another_sampling_is_found(inputs):
    """Both are identified by what they are: new objects with the same content are the same."""
    fresh = inputs.parts
    inputs.settings["name"] = "patched"
    found = []
    for _ in range(2):
        inputs.parts = (with_sampling(with_lora(replace(inputs, parts=fresh)), 2.0), *fresh[1:])
        found.append(inputs.train()[0].summary)
    assert found[0].name == "patched" and found[1].id == found[0].id


# -- not found -----------------------------------------------------------------------------------


def picture(it: Inputs) -> None:
    from PIL import Image

    path = sorted(it.pictures.glob("*.jpg"))[0]
    with Image.open(path) as image:
        changed = image.convert("RGB")
    changed.putpixel((0, 0), (255, 0, 255))
    changed.save(path, quality=95)


def captioned(it: Inputs) -> None:
    it.change = lambda dataset: dataset.with_pictures(
        replace(p, caption="zorp, another") if n == 1 else p for n, p in enumerate(dataset.pictures)
    )


def repeated(it: Inputs) -> None:
    it.change = lambda dataset: dataset.with_pictures(replace(p, repeats=2) for p in dataset.pictures)


def masked(it: Inputs) -> None:
    it.change = lambda dataset: dataset.with_pictures(
        replace(p, mask=p.path, outside=0.5) if n == 1 else p for n, p in enumerate(dataset.pictures)
    )


def policy(it: Inputs) -> None:
    from lora_workbench.training.data.dataset import CaptionPolicy

    it.change = lambda dataset: replace(dataset, policy=CaptionPolicy(shuffle=True))


def reordered(it: Inputs) -> None:
    it.change = lambda dataset: dataset.with_pictures(reversed(dataset.pictures))


def regularized(it: Inputs) -> None:
    it.change = lambda dataset: dataset.with_pictures(
        replace(p, is_regularization=n == 1) for n, p in enumerate(dataset.pictures)
    )


def preserved(it: Inputs) -> None:
    it.change = lambda dataset: dataset.with_pictures(
        replace(p, preserves_prior=n == 1) for n, p in enumerate(dataset.pictures)
    )


def held_out(it: Inputs, share: float = 0.3, dataset: Any = None) -> None:
    from lora_workbench.training.watch import HeldOut, Watch

    it.more["watch"] = Watch(held_out=HeldOut(0, share, dataset))


def measured(it: Inputs) -> None:
    held_out(it, 0.0, photos(it.folder / "2_other", most=2))


def text_encoder(it: Inputs) -> None:
    it.settings["clip_l"] = True


def autoencoder(it: Inputs) -> None:
    fresh = loaded(it.checkpoint)
    with torch.inference_mode():
        next(fresh[2].first_stage_model.parameters()).mul_(1.01)
    it.parts = (*it.parts[:2], fresh[2])


def setting(it: Inputs) -> None:
    it.settings["learning_rate"] = 2e-2


def saving(it: Inputs) -> None:
    it.settings["save_every_steps"] = 1


def precision(it: Inputs) -> None:
    it.settings["precision"] = "bf16"


def weights(it: Inputs) -> None:
    import comfy.model_management

    fresh = loaded(it.checkpoint)
    with torch.inference_mode():
        next(fresh[0].model.diffusion_model.out.parameters()).mul_(1.01)
    comfy.model_management.unload_all_models()
    it.parts = fresh


def lora(it: Inputs) -> None:
    it.parts = (with_lora(it), *it.parts[1:])


def sampling(it: Inputs) -> None:
    it.parts = (with_sampling(it.parts[0], 3.0), *it.parts[1:])


def function(it: Inputs) -> None:
    model = it.parts[0].clone()
    model.set_model_input_block_patch(lambda h, _: h)
    it.parts = (model, *it.parts[1:])


def clip_skip(it: Inputs) -> None:
    clip = it.parts[1].clone()
    clip.clip_layer(-2)
    it.parts = (it.parts[0], clip, it.parts[2])


def started(it: Inputs) -> None:
    from lora_workbench.training.run.checkpoints import checkpoints, load

    it.more["start_from"] = load(checkpoints(it.folder / "runs" / "run")[-1])


def file_changed(it: Inputs) -> None:
    path = it.folder / "runs" / "run" / "run.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def file_gone(it: Inputs) -> None:
    (it.folder / "runs" / "run" / "run.safetensors").unlink()


def facts(**changes: Any) -> Callable[[Inputs], None]:
    def change(it: Inputs) -> None:
        path = it.folder / "runs" / "run" / "run.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    change.__name__ = " ".join(map(str, *changes.items()))
    return change


def broken(it: Inputs) -> None:
    (it.folder / "runs" / "run" / "run.json").write_text('{"id": ')


def again(it: Inputs) -> None:
    it.settings["if_run_before"] = "train again"


OTHERS = [
    picture, captioned, repeated, masked, policy, reordered, regularized, preserved, held_out, measured, setting,
    saving, precision, weights, autoencoder, text_encoder, lora, sampling, function, clip_skip, started, file_changed,
    file_gone, facts(outcome="cancelled"), facts(outcome="stopped"), facts(outcome="failed"), facts(file_hash=None),
    facts(fingerprint=""), broken, again,
]  # fmt: skip


class Trains(Exception):
    """Raised in place of the training."""


@pytest.mark.parametrize("change", OTHERS, ids=lambda change: change.__name__)
def test_what_differs_is_trained(change, inputs, monkeypatch):
    from lora_workbench.training import train as module

    def trains(*_: Any) -> None:
        raise Trains

    hashes, find = [], module.reused

    def looks(root: Path, inputs_hash: str, *more: Any) -> Any:
        hashes.append(inputs_hash)
        return find(root, inputs_hash, *more)

    monkeypatch.setattr(module, "trained_layers", trains)
    monkeypatch.setattr(module, "reused", looks)
    change(inputs)
    with pytest.raises(Trains):
        inputs.train()
    assert [bool(one) for one in hashes] == ([] if change is again else [change is not function])


@pytest.mark.parametrize("value", [7, 8])
def test_a_setting_of_a_later_version_counts_where_it_is_not_its_default(value, inputs, first, monkeypatch):
    from lora_workbench.training import config
    from lora_workbench.training.settings import knob

    new = [("new", int, knob(7, "New."))]
    later = dataclasses.make_dataclass("TrainConfig", new, bases=(config.TrainConfig,), frozen=True)
    monkeypatch.setattr(config, "TrainConfig", later)
    inputs.settings["new"] = value
    if value == 7:
        assert_is_found(inputs, first[1])
    else:
        assert inputs.train()[0].summary.name == "run-2"


@pytest.mark.parametrize(("asked", "name", "in_force"), [("plenty", "run-2", "AdamW"), ("8 GB", "run", "AdamW8bit")])
def test_a_run_that_memory_forced_to_8_bits_is_used_for_the_same_memory(asked, name, in_force, inputs):
    facts(optimizer="AdamW8bit")(inputs)
    path = inputs.folder / "runs" / "run" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"memory": "8 GB"}))
    inputs.settings["memory"] = asked
    assert inputs.train()[0].summary.name == name
    assert json.loads((inputs.folder / "runs" / name / "run.json").read_text())["optimizer"] == in_force


def test_another_version_of_the_engine_trains(inputs, monkeypatch):
    from lora_workbench.training.run import fingerprint

    monkeypatch.setattr(fingerprint, "ENGINE", fingerprint.ENGINE + 1)
    assert inputs.train()[0].summary.name == "run-2"


@pytest.mark.parametrize("wish", ["stop", "cancel"])
def test_a_run_that_was_ended_early_is_not_found(wish, inputs):
    """Queueing again trains to the end."""
    from lora_workbench.training.run import under_way

    class Ends(Heard):
        def record(self, run: str, line: dict[str, Any]) -> None:
            super().record(run, line)
            if line["kind"] == "step" and wish == "stop":
                under_way.known(run).wish("stop")

        def cancelled(self) -> bool:
            return wish == "cancel" and any(line["kind"] == "step" for _, line in self.lines)

    inputs.settings |= {"seed": 5, "name": "early"}
    dataset = photos(inputs.pictures)
    early = train(inputs.parts, dataset, inputs.folder, Ends(), **{**SETTINGS, **inputs.settings}).summary
    assert (early.outcome, early.steps) == ({"stop": "stopped", "cancel": "cancelled"}[wish], 1)
    whole = inputs.train()[0].summary
    assert (whole.name, whole.steps, whole.outcome) == ("early-2", 2, "finished")
