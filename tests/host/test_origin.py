"""Which file a MODEL came from, found in graphs of the host's own nodes."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import pytest
from support.prompts import node


@pytest.fixture(scope="module")
def files(comfy_host, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Model files that the host knows, and its node classes."""
    import folder_paths

    import nodes

    if "ModelMergeSimple" not in nodes.NODE_CLASS_MAPPINGS:
        asyncio.run(nodes.init_builtin_extra_nodes())
    made = {}
    for folder, name in (("checkpoints", "a.safetensors"), ("checkpoints", "sub/b.safetensors"),
                         ("diffusion_models", "c.sft")):  # fmt: skip
        made[name] = Path(folder_paths.get_folder_paths(folder)[0]) / name
        made[name].parent.mkdir(parents=True, exist_ok=True)
        made[name].write_bytes(bytes(0x100000) + name.encode() * 9000)
    return made


def found(prompt: dict[str, Any]) -> Path | None:
    from comfy_execution.graph import DynamicPrompt
    from lora_workbench.training.host.origin import model_file

    return model_file(DynamicPrompt(prompt), "train")


def load(name: str = "a.safetensors") -> dict[str, Any]:
    return node("CheckpointLoaderSimple", ckpt_name=name)


def lora(source: str) -> dict[str, Any]:
    return node("LoraLoaderModelOnly", model=[source, 0], lora_name="a.safetensors", strength_model=1.0)


def trainer(source: str) -> dict[str, Any]:
    return node("LoRATrainer", model=[source, 0], clip=["other", 1], vae=["other", 2], name="a.safetensors")


OTHER = {"other": load("sub/b.safetensors")}  # the CLIP and VAE of another file are no candidates


@pytest.mark.parametrize(
    ("name", "graph"),
    [
        ("a.safetensors", {"load": load(), "train": trainer("load")}),
        ("sub/b.safetensors", {"train": trainer("other")}),
        ("c.sft", {"load": node("UNETLoader", unet_name="c.sft", weight_dtype="default"), "train": trainer("load")}),
        ("a.safetensors", {"load": load(), "lora": lora("load"), "more": lora("lora"), "train": trainer("more")}),
        # A subgraph's nodes have ids with colons.
        ("a.safetensors", {"7:3": load(), "7:8:1": node("ModelSamplingSD3", model=["7:3", 0], shift=3.0),
                           "train": trainer("7:8:1")}),
        ("a.safetensors", {"load": load(), "one": lora("load"), "two": lora("load"),
                           "both": node("ModelMergeSimple", model1=["one", 0], model2=["two", 0], ratio=1.0),
                           "train": trainer("both")}),
    ],
)  # fmt: skip
def test_the_file_of_one_loader(files, name, graph):
    assert found(OTHER | graph) == files[name]


@pytest.mark.parametrize(
    "graph",
    [
        {"load": load(), "both": node("ModelMergeSimple", model1=["load", 0], model2=["other", 0], ratio=1.0),
         "train": trainer("both")},  # two files
        {"load": load("gone.safetensors"), "train": trainer("load")},
        {"load": load("../checkpoints"), "train": trainer("load")},
        {"load": node("DiffusersLoader", model_path="a_folder"), "train": trainer("load")},
        {"load": node("SomeGGUFLoader", unet_name="x.gguf"), "train": trainer("load")},  # a class nobody knows
        {"load": node("CheckpointLoaderSimple", ckpt_name=["name", 0]), "name": node("PrimitiveInt", value=1),
         "train": trainer("load")},
        {"one": lora("two"), "two": lora("one"), "train": trainer("one")},  # a circle
        {"train": trainer("nowhere")},
        {"train": node("LoRATrainer")},
        {"load": load()},
    ],
)  # fmt: skip
def test_what_is_unknown_is_left_out(files, graph):
    assert found(OTHER | graph) is None


def test_a_loader_made_by_an_expansion_is_found(files):
    from comfy_execution.graph import DynamicPrompt
    from lora_workbench.training.host.origin import model_file

    graph = DynamicPrompt({"outer": node("SomeExpandingNode")})
    graph.add_ephemeral_node("outer.0.1", load(), "outer", "outer")
    graph.add_ephemeral_node("outer.0.2", trainer("outer.0.1"), "outer", "outer")
    assert model_file(graph, "outer.0.2") == files["a.safetensors"]
    assert model_file(None, "1") is None and model_file(graph, None) is None


def test_the_short_hash_is_that_of_kohyas_trainer(files, tmp_path):
    """`model_hash` in sd-scripts: of 64 KiB after the first MiB."""
    from lora_workbench.training.host.origin import short_hash

    data = files["a.safetensors"].read_bytes()
    assert short_hash(files["a.safetensors"]) == hashlib.sha256(data[0x100000:0x110000]).hexdigest()[:8]
    assert short_hash(files["a.safetensors"]) != short_hash(files["c.sft"])
    assert short_hash(tmp_path / "gone") == short_hash(tmp_path) == ""
