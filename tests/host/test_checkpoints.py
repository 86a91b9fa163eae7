"""Checkpoints of a run, read back from its folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.session import loaded, photos, train

pytestmark = pytest.mark.usefixtures("comfy_host")


@pytest.fixture(scope="module")
def ran(comfy_host: Any, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of three epochs of three steps, saved after each epoch and every fourth step."""
    folder = tmp_path_factory.mktemp("ran")
    dataset = photos(folder / "1_photo")
    settings = {"epochs": 3, "steps": 0, "batch_size": 4, "save_every_epochs": 1, "save_every_steps": 4}
    result = train(loaded(tiny_checkpoint), dataset, folder, **settings)
    assert result.summary.steps == 9
    return SimpleNamespace(result=result, folder=folder / "runs" / "run")


def labels(folder: Path) -> list[str]:
    from lora_workbench.training.run.checkpoints import checkpoints

    return [one.label + (" (last)" if one.is_last else "") for one in checkpoints(folder)]


ALL = ["step 3 · epoch 1", "step 4 · epoch 1", "step 6 · epoch 2", "step 8 · epoch 2", "step 9 · epoch 3 (last)"]


def test_the_checkpoints_of_a_run(ran, tmp_path):
    """Also of a folder that was moved, one without a log, and one that lost a file."""
    assert labels(ran.folder) == ALL
    moved = shutil.copytree(ran.folder, tmp_path / "renamed")
    assert labels(moved) == ALL
    for name in ("log.jsonl", "summary.json"):
        (moved / name).unlink()
    assert labels(moved) == ALL
    (moved / "run-000001.safetensors").unlink()
    (moved / "notes.safetensors").mkdir()
    assert labels(moved) == ALL[1:]
    (moved / "run-step00000004.safetensors").write_bytes(b"damaged")
    assert labels(moved) == ["step 4 · epoch 0", *ALL[2:]]


def test_a_checkpoint_is_the_lora_as_the_trainer_hands_it_on(ran, tmp_path):
    from lora_workbench.training.files.export import to_peft, write_lora
    from lora_workbench.training.files.save import check_file
    from lora_workbench.training.run.checkpoints import checkpoints, load

    last, lora = load(checkpoints(ran.folder)[-1]), ran.result.lora
    assert last.keys() == lora.keys() and all(torch.equal(last[key], lora[key]) for key in lora)
    assert last.layers == lora.layers and last.key_map == lora.key_map and last.key_map
    same = {key: value for key, value in lora.metadata.items() if not key.endswith("finished_at")}
    assert same.items() - last.metadata.items() == set()
    middle = load(checkpoints(ran.folder)[1])
    assert middle.metadata["ss_steps"] == "4" and any(not torch.equal(middle[key], lora[key]) for key in lora)
    assert to_peft(middle, torch.float16).keys() == to_peft(lora, torch.float16).keys()
    for layout in ("kohya", "peft"):
        write_lora(tmp_path / layout, middle, layout=layout, check=lambda file: check_file(file, middle))


def test_names_of_parts_of_a_weight_come_back_as_they_were(tmp_path):
    from lora_workbench.training.lora import DiffusersTarget, LayerNames
    from lora_workbench.training.run.checkpoints import layers_text, read_layers

    targets = (DiffusersTarget("transformer.q", 0, 8), DiffusersTarget("transformer.k", 8, 8))
    layers = [LayerNames("diffusion_model.qkv", "lora_unet_qkv", targets)]
    key_map = {"lora_unet_qkv": "qkv.weight", "transformer.q": ("qkv.weight", (0, 0, 8))}
    by_function = {"transformer.norm": ("norm.weight", None, lambda weight: weight)}
    (tmp_path / "layers.json").write_text(layers_text(layers, {**key_map, **by_function}))
    assert read_layers(tmp_path) == ({"lora_unet_qkv": layers[0]}, key_map)


@pytest.mark.parametrize(
    ("at", "label"),
    [("last", ALL[4]), ("step 4", ALL[1]), ("4", ALL[1]), ("Epoch 2", ALL[2]), ("epoch 1", ALL[0]), ("step 9", ALL[4])],
)
def test_a_checkpoint_is_chosen_by_a_text(at, label, ran):
    from lora_workbench.training.run.checkpoints import checkpoints, chosen

    assert chosen(checkpoints(ran.folder), at).label == label.removesuffix(" (last)")


@pytest.mark.parametrize(
    ("at", "said"),
    [("step 5", "no checkpoint at step 5. Choose one of these: step 3 · epoch 1, step 4"), ("epoch 4", "at epoch 4"),
     ("best", "names no checkpoint"), ("", "names no checkpoint"), ("step -3", "names no checkpoint")],
)  # fmt: skip
def test_a_text_that_names_no_checkpoint_is_refused(at, said, ran):
    from lora_workbench.training.errors import UserError
    from lora_workbench.training.run.checkpoints import checkpoints, chosen

    with pytest.raises(UserError, match=said):
        chosen(checkpoints(ran.folder), at)
    with pytest.raises(UserError, match="has no checkpoints"):
        chosen([], "last")


def test_the_summary_of_a_run_on_disk(ran, tmp_path):
    """Also of one that broke off without a summary, and of one from another version."""
    from lora_workbench.training.run.checkpoints import summary

    assert summary(ran.folder) == ran.result.summary
    moved = shutil.copytree(ran.folder, tmp_path / "renamed")
    assert summary(moved).folder == str(moved) and summary(moved).checkpoints[0].startswith(str(moved))
    whole = json.loads((moved / "summary.json").read_text())
    for key in ("hints", "memory"):
        del whole[key]
    (moved / "summary.json").write_text(json.dumps({**whole, "of tomorrow": 1, "steps": "many", "skipped": None}))
    assert (summary(moved).losses, summary(moved).hints) == (ran.result.summary.losses, ())
    (moved / "summary.json").write_text("{broken")
    (moved / "run.json").write_text('{"id": "1", "name": "run"}')
    broken_off = summary(moved)
    assert (broken_off.outcome, broken_off.steps, broken_off.epochs) == ("broken off", 9, 3)
    assert broken_off.losses == pytest.approx(ran.result.summary.losses)
    assert summary(tmp_path / "gone").losses == ()
