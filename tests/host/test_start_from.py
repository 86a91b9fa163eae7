"""Training on from an existing LoRA: its pairs, whatever the format of the file, and what is said of the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support import small_models
from support.photos import write_photos
from support.rig import Rig, rig, trained_tensors
from support.session import AGAIN

pytestmark = pytest.mark.usefixtures("comfy_host")

MODELS = ("sd15_two", "sdxl", "sd3", "flux")
FORMATS = ("kohya", "PEFT", "ComfyUI")
SMALL: dict[str, Any] = {"side": 64, "pictures": 1, "batch_size": 1}  # what the larger models are shown


def trained_lora(name: str, models: Path, work: Path, **settings: Any) -> Any:
    """A LoRA of two steps as the trainer hands it on."""
    from lora_workbench.training.host.keys import HOST_PREFIX, layer_names
    from lora_workbench.training.lora import LoraModel

    with rig(name, models, work, steps=2, learning_rate=1e-2, **settings) as it:
        it.train()
        names = layer_names(it.patcher, [HOST_PREFIX + layer.path for layer in it.network.adapters])
        short = {path.removeprefix(HOST_PREFIX): layer.kohya for path, layer in names.items()}
        return LoraModel(it.network.saved_tensors(short), {layer.kohya: layer for layer in names.values()})


def written(lora: Any, layout: str, folder: Path) -> Any:
    """A LoRA that was saved in a format and loaded again."""
    from lora_workbench.training.files.export import write_lora
    from lora_workbench.training.files.load import load_lora

    file = folder / f"{layout}.safetensors"
    if layout == "ComfyUI":  # as ComfyUI's own trainer names them
        by_name = {key.rpartition(".lora_")[0] or key.removesuffix(".alpha"): key for key in lora}
        modules = {name: lora.layers[name].module for name in by_name}
        save_file({modules[_layer(key)] + key.removeprefix(_layer(key)): lora[key] for key in lora}, file)
    else:
        write_lora(file, lora, precision="fp32", layout=layout.lower(), overwrite=False)
    return load_lora(file, file.name)


def _layer(key: str) -> str:
    return key.removesuffix(".alpha").removesuffix(".lora_up.weight").removesuffix(".lora_down.weight")


def output(it: Rig) -> torch.Tensor:
    """What the model makes of the first batch."""
    it.network.flat.refresh()
    micro = it.prepare()
    with torch.no_grad():
        xt = it.model.noised(micro.x0, micro.drawn.noise, micro.drawn.sigma)
        return it.model.denoised(xt, micro.drawn.sigma, it.conditions(micro)).float().clone()


def applied(name: str, models: Path, work: Path, lora: Any, **settings: Any) -> torch.Tensor:
    """The same with the LoRA applied by the host, and a fresh one on top that changes nothing."""
    from lora_workbench.training.host.apply import apply_lora

    with torch.inference_mode():
        patcher, _ = apply_lora(small_models.build(name, models), None, lora, 1.0, 1.0)
    with rig(name, models, work, patcher=patcher, **settings) as it:
        return output(it)


def plain_output(name: str, models: Path, work: Path, **settings: Any) -> torch.Tensor:
    with rig(name, models, work, **settings) as it:
        return output(it)


@pytest.mark.parametrize("name", MODELS)
def test_the_first_step_is_the_lora_applied_by_the_host(name: str, small_models_folder: Path, tmp_path: Path) -> None:
    """In every format, at the file's rank and alpha instead of the trainer's; then it learns on."""
    models, small = small_models_folder, SMALL
    lora = trained_lora(name, models, tmp_path, rank=3, alpha=2.0, **small)
    expected = applied(name, models, tmp_path, lora, **small)
    assert not torch.allclose(expected, plain_output(name, models, tmp_path, **small), atol=1e-3)
    for layout in FORMATS:
        start = written(lora, layout, tmp_path)
        settings = {"rank": 8, "steps": 2, "dropout": 0.1, **small}
        with rig(name, models, tmp_path, start_from=start, **settings) as it:
            found = [(layer.rank, layer.alpha) for layer in it.network.adapters]
            assert set(found) == {(3, 3.0) if layout == "PEFT" else (3, 2.0)}, layout  # a PEFT file has no alpha
            begun = [tensor.clone() for tensor in trained_tensors(it.network)]
            for layer in it.network.adapters:
                layer.dropout = 0.0
            assert (output(it) - expected).abs().max() < 1e-4, layout
            for layer in it.network.adapters:
                layer.dropout = 0.1
            if layout != "kohya":
                continue
            it.train()
            # A block's text branch that never reaches the output has no gradient.
            moved = [not torch.equal(a, b) for a, b in zip(begun, trained_tensors(it.network), strict=True)]
            assert sum(moved) > 0.7 * len(moved)
            assert all((a - b).abs().max() < 0.1 for a, b in zip(begun, trained_tensors(it.network), strict=True))


def test_half_precision_starts_in_fp32(small_models_folder: Path, tmp_path: Path) -> None:
    lora = trained_lora("sd3", small_models_folder, tmp_path)
    half = {key: tensor.bfloat16() for key, tensor in lora.items()}
    with rig("sd3", small_models_folder, tmp_path, start_from=half) as it:
        assert all(tensor.dtype == torch.float32 for tensor in trained_tensors(it.network))
        first = it.network.adapters[0]
        assert any(torch.equal(first.up.master, tensor.float()) for tensor in half.values())


def test_layers_that_the_file_lacks_start_fresh(small_models_folder: Path, tmp_path: Path) -> None:
    """At the trainer's rank, with the draws of a run without a start."""
    lora = trained_lora("sd3", small_models_folder, tmp_path, rank=3, alpha=1.0)
    kept = list(lora.layers)[::2]
    some = {key: tensor for key, tensor in lora.items() if _layer(key) in kept}
    with rig("sd3", small_models_folder, tmp_path, rank=4) as it:
        fresh = {layer.path: layer.down.master.clone() for layer in it.network.adapters}
    paths = {lora.layers[name].module.removeprefix("diffusion_model.") for name in kept}
    with rig("sd3", small_models_folder, tmp_path, start_from=some, rank=4) as it:
        for layer in it.network.adapters:
            if layer.path in paths:
                assert (layer.rank, layer.alpha) == (3, 1.0)
            else:
                assert (layer.rank, layer.alpha) == (4, 4.0) and not layer.up.master.any()
                assert torch.equal(layer.down.master, fresh[layer.path])
        assert 0 < len(paths) < len(fresh) == len(it.network.adapters)


def random(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.2


def test_q_k_and_v_of_a_diffusers_file_become_one_pair(small_models_folder: Path, tmp_path: Path) -> None:
    """Ranks add up; each part keeps the strength that its own alpha gives it."""
    base = "transformer.transformer_blocks.0.attn"
    width = small_models.build("sd3", small_models_folder).model.diffusion_model.joint_blocks[0].x_block.attn.qkv
    fan = width.in_features
    file = {}
    for number, (part, rank) in enumerate((("to_q", 2), ("to_k", 3), ("to_v", 4))):
        file[f"{base}.{part}.lora_A.weight"] = random(rank, fan, seed=number)
        file[f"{base}.{part}.lora_B.weight"] = random(fan, rank, seed=number + 10)
        file[f"{base}.{part}.alpha"] = torch.tensor(float(1 + number))
    expected = applied("sd3", small_models_folder, tmp_path, file)
    with rig("sd3", small_models_folder, tmp_path, start_from=file) as it:
        layer = it.network.by_path()["joint_blocks.0.x_block.attn.qkv"]
        assert layer.rank == 9 and layer.alpha == 9.0
        assert [int((layer.up.master[:, at] != 0).sum()) for at in (0, 2, 5)] == [fan] * 3
        assert (output(it) - expected).abs().max() < 1e-4
    assert not torch.allclose(expected, plain_output("sd3", small_models_folder, tmp_path), atol=1e-3)
    only_k = {key: tensor for key, tensor in file.items() if "to_k" in key}
    expected = applied("sd3", small_models_folder, tmp_path, only_k)
    with rig("sd3", small_models_folder, tmp_path, start_from=only_k) as it:
        assert (output(it) - expected).abs().max() < 1e-4


@pytest.mark.long
def test_further_layers_of_the_file_are_trained_too(small_models_folder: Path, tmp_path: Path) -> None:
    """Linear layers and 1×1 convolutions that a run by itself would leave alone."""
    model = small_models.build("sd15_two", small_models_folder).model.diffusion_model
    skip = next(path for path, module in model.named_modules() if path.endswith("skip_connection") and _is_conv(module))
    file = {}
    for path in ("time_embed.0", "input_blocks.1.0.emb_layers.1", skip):
        module = model.get_submodule(path)
        out, fan, *kernel = module.weight.shape
        name = f"lora_unet_{path.replace('.', '_')}"
        file[f"{name}.lora_down.weight"] = random(2, fan, *kernel)
        file[f"{name}.lora_up.weight"] = random(out, 2, *kernel)
    expected = applied("sd15_two", small_models_folder, tmp_path, file)
    with rig("sd15_two", small_models_folder, tmp_path) as it:
        count = len(it.network.adapters)
    for checkpointing in (False, True):
        settings = {"steps": 2, "gradient_checkpointing": checkpointing}
        with rig("sd15_two", small_models_folder, tmp_path, start_from=file, **settings) as it:
            assert len(it.network.adapters) == count + 3
            with it.left():
                it.ready.fit.need(it.ready.fit.ladder.rung)
                assert not it.ready.fit.is_rough, "their memory is counted"
            assert (output(it) - expected).abs().max() < 1e-4 * max(1.0, float(expected.abs().max()))
            more = it.network.adapters[-3:]
            before = [layer.up.master.clone() for layer in more]
            it.train()
            assert not any(torch.equal(b, layer.up.master) for b, layer in zip(before, more, strict=True))


def _is_conv(module: Any) -> bool:
    return isinstance(module, torch.nn.Conv2d)


def layers_of(lora: Any, patcher: Any, clip: Any = None) -> tuple[list[Any], list[str]]:
    """What a run would train, and what was said of it."""
    from lora_workbench.training.config import TrainConfig
    from lora_workbench.training.host.model import HostModel
    from lora_workbench.training.preflight import trained_layers

    hints: list[str] = []
    return trained_layers(HostModel(patcher), TrainConfig(), lora, clip, hints.append), hints


LAYER = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q"
CONV = "lora_unet_input_blocks_1_0_in_layers_2"
FOREIGN = {
    "LoHa layers": {
        f"{LAYER}.{part}": random(*shape)
        for part, shape in {
            "hada_w1_a": (320, 2), "hada_w1_b": (2, 320), "hada_w2_a": (320, 2), "hada_w2_b": (2, 320),
        }.items()
    },
    "LoKr layers": {f"{LAYER}.lokr_w1": random(4, 4), f"{LAYER}.lokr_w2": random(80, 80)},
    "OFT layers": {f"{LAYER}.oft_blocks": random(4, 80, 80)},
    "DoRA layers": {
        f"{LAYER}.lora_down.weight": random(2, 320), f"{LAYER}.lora_up.weight": random(320, 2),
        f"{LAYER}.dora_scale": random(320, 1),
    },
    "LoCon layers": {f"{CONV}.lora_down.weight": random(2, 320, 3, 3), f"{CONV}.lora_up.weight": random(320, 2, 1, 1)},
    "whole weights": {f"{LAYER}.diff": random(320, 320)},
}  # fmt: skip


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_no_plain_lora_is_refused_by_name(kind: str, small_models_folder: Path) -> None:
    from lora_workbench.training.errors import UserError

    said = rf"start_from holds {kind}.*, such as diffusion_model\.input_blocks\.1.*Start from a plain LoRA, or apply"
    with pytest.raises(UserError, match=said):
        layers_of(FOREIGN[kind], small_models.build("sd15_two", small_models_folder))


def test_a_lora_of_another_model_is_refused(small_models_folder: Path) -> None:
    from lora_workbench.training.errors import UserError

    file = {f"{LAYER}.lora_down.weight": random(2, 320), f"{LAYER}.lora_up.weight": random(320, 2)}
    with pytest.raises(UserError, match=r"does not fit this MODEL \(SD3\): none of its 2 tensors has a place"):
        layers_of(file, small_models.build("sd3", small_models_folder))
    narrow = {f"{LAYER}.lora_down.weight": random(2, 640), f"{LAYER}.lora_up.weight": random(640, 2)}
    with pytest.raises(UserError, match=r"to_q of 640 to 640 values, but this MODEL's takes 320 to 320"):
        layers_of(narrow, small_models.build("sd15_two", small_models_folder))
    broken = file | {f"{LAYER}.lora_up.weight": torch.full((320, 2), float("nan"))}
    with pytest.raises(UserError, match=r"values that are not numbers in input_blocks\.1"):
        layers_of(broken, small_models.build("sd15_two", small_models_folder))


TEXT = "lora_te_text_model_encoder_layers_0_mlp_fc1"


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Any:
    """MODEL, CLIP and VAE of the small SD1.5 checkpoint."""
    import comfy.sd

    with torch.inference_mode():
        return comfy.sd.load_checkpoint_guess_config(str(tiny_checkpoint))[:3]


def test_text_encoders_that_are_not_trained_are_mentioned(checkpoint: Any) -> None:
    model, clip, _ = checkpoint
    file = {f"{LAYER}.lora_down.weight": random(2, 320), f"{LAYER}.lora_up.weight": random(320, 2)}
    text = {f"{TEXT}.lora_down.weight": random(2, 768), f"{TEXT}.lora_up.weight": random(3072, 2)}
    _, hints = layers_of(file, model, clip)
    assert hints == []
    for given in (clip, None):
        layers, (hint,) = layers_of(file | text, model, given)
        assert "text encoders that this run does not train" in hint and "Turn them on in Text Encoder Opt" in hint
        assert ("(clip_l)" in hint) == (given is not None)
        assert sum(layer.start is not None for layer in layers) == 1
    _, (hint,) = layers_of(file | {"lora_unet_nowhere.lora_down.weight": random(2, 2)}, model, clip)
    assert hint.startswith("1 of 3 tensors of the LoRA in start_from have no place in this MODEL")


def test_text_layers_that_are_trained_get_their_pairs(checkpoint: Any) -> None:
    from lora_workbench.training.adapters.lora import Trained
    from lora_workbench.training.host.existing import started_from

    model, clip, _ = checkpoint
    path = "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1"
    layer = Trained(path, clip.cond_stage_model.get_submodule(path), 8, 8.0, "clip_l")
    down, up = random(2, 768), random(3072, 2)
    file = {f"{TEXT}.lora_down.weight": down, f"{TEXT}.lora_up.weight": up, f"{TEXT}.alpha": torch.tensor(1.0)}
    hints: list[str] = []
    (started,) = started_from(file, [layer], model, clip, hints.append)
    assert (started.rank, started.alpha, started.part_of) == (2, 1.0, "clip_l") and hints == []
    assert torch.equal(started.start[0], down) and torch.equal(started.start[1], up)


# -- whole runs, and the node --------------------------------------------------------------------


@pytest.fixture(scope="module")
def dataset(comfy_host: Any, tmp_path_factory: Any) -> Any:
    from lora_workbench.training.data.buckets import BucketConfig, assign_buckets
    from lora_workbench.training.data.scan import scan_folder

    folder = tmp_path_factory.mktemp("data") / "1_photo"
    folder.mkdir()
    write_photos(folder, longest=256)
    return assign_buckets(scan_folder(folder, trigger="zorp"), BucketConfig(resolution=64, step=32))


class Heard:
    """A sink that records hints."""

    def __init__(self) -> None:
        self.hints: list[str] = []

    def phase(self, text: str, done: int, total: int) -> None: ...
    def record(self, *_: Any) -> None: ...
    def step(self, event: Any) -> None: ...
    def tell(self, text: str) -> None: ...

    def hint(self, text: str) -> None:
        self.hints.append(text)

    def cancelled(self) -> bool:
        return False


def whole_run(checkpoint: Any, dataset: Any, folder: Path, start_from: Any = None, **settings: Any) -> Any:
    from lora_workbench.training.config import TrainConfig
    from lora_workbench.training.train import train_lora

    config = TrainConfig(**{"name": "run", "steps": 2, "rank": 4, "warn_about_steps": False, **AGAIN, **settings})
    sink = Heard()
    with torch.inference_mode():
        result = train_lora(
            *checkpoint, dataset, config, root=folder / "runs", cache_root=folder / "cache", sink=sink,
            start_from=start_from,
        )  # fmt: skip
    assert list(result.summary.hints) == sink.hints
    return result


def test_a_run_goes_on_from_another(checkpoint: Any, dataset: Any, tmp_path: Path) -> None:
    from lora_workbench.training.files.load import load_lora

    first = whole_run(checkpoint, dataset, tmp_path, name="first", alpha=2.0, learning_rate=1e-2)
    assert "lora_workbench.start_from" not in first.lora.metadata
    tiny = {"learning_rate": 1e-9, "rank": 8, "dropout": 0.2}
    again = whole_run(checkpoint, dataset, tmp_path, first.lora, **tiny)
    assert again.lora.keys() == first.lora.keys()
    assert all(torch.allclose(again.lora[key], first.lora[key], atol=1e-7) for key in first.lora)
    said = again.lora.metadata
    assert said["lora_workbench.start_from"] == "first"
    assert (said["ss_network_dim"], said["ss_network_alpha"]) == ("4", "2.0"), "what the layers have"
    file = tmp_path / "runs" / "first" / "first.safetensors"
    some = load_lora(file, "mine.safetensors")
    for key in [key for key in some if "attn1_to_q" in key]:
        del some[key]
    mixed = whole_run(checkpoint, dataset, tmp_path, some, rank=8).lora.metadata
    assert (mixed["ss_network_dim"], mixed["ss_network_alpha"]) == ("Dynamic", "Dynamic")
    assert mixed["lora_workbench.start_from"] == "mine.safetensors"


def test_what_is_left_out_is_in_the_summary(checkpoint: Any, dataset: Any, tmp_path: Path) -> None:
    file = {f"{LAYER}.lora_down.weight": random(2, 320), f"{LAYER}.lora_up.weight": random(320, 2)}
    file |= {f"{TEXT}.lora_down.weight": random(2, 768), f"{TEXT}.lora_up.weight": random(3072, 2)}
    result = whole_run(checkpoint, dataset, tmp_path, file)
    assert [hint for hint in result.summary.hints if "text encoders that this run does not train" in hint]
    assert result.lora.metadata["lora_workbench.start_from"] == "a LORA_MODEL without a name"


def test_a_lora_that_cannot_be_trained_on_leaves_nothing(checkpoint: Any, dataset: Any, tmp_path: Path) -> None:
    from lora_workbench.training.errors import UserError

    with pytest.raises(UserError, match="LoHa"):
        whole_run(checkpoint, dataset, tmp_path, FOREIGN["LoHa layers"])
    assert not list(tmp_path.iterdir())


def test_the_estimate_of_the_files_size_is_exact(checkpoint: Any, dataset: Any, tmp_path: Path) -> None:
    """With ranks that differ and layers of the file's own."""
    from lora_workbench.training.config import TrainConfig
    from lora_workbench.training.estimate import estimate

    file = {}
    for name, rank, fan, out in ((LAYER, 5, 320, 320), ("lora_unet_time_embed_0", 3, 320, 1280)):
        file[f"{name}.lora_down.weight"], file[f"{name}.lora_up.weight"] = random(rank, fan), random(out, rank)
    run = whole_run(checkpoint, dataset, tmp_path, file, name="run")
    config = TrainConfig(name="run", steps=2, rank=4)
    found = estimate(*checkpoint, dataset, config, cache_root=tmp_path / "cache", sink=Heard(), start_from=file)
    saved = tmp_path / "runs" / "run" / "run.safetensors"
    alone = tmp_path / "alone.safetensors"
    save_file(dict(run.lora), alone)
    assert found.run_lora_bytes == alone.stat().st_size < saved.stat().st_size
    fresh = estimate(*checkpoint, dataset, config, cache_root=tmp_path / "cache", sink=Heard())
    assert found.run_lora_bytes > fresh.run_lora_bytes
    measured = estimate(
        *checkpoint, dataset, config, cache_root=tmp_path / "cache", sink=Heard(), measure=True, start_from=file
    )
    assert measured.measured is not None


def test_the_node_reads_safetensors_only(comfy_host: Any, tmp_path: Path) -> None:
    from lora_workbench.nodes import NODES
    from lora_workbench.training.errors import UserError
    from lora_workbench.training.files.load import load_lora

    node: Any = next(node for node in NODES if node.__name__ == "LoadLoRA")
    assert node.GET_SCHEMA().node_id == "LoRAWorkbench_LoadLoRA"
    folder = comfy_host.base / "models" / "loras" / "mine"
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"{LAYER}.lora_down.weight": random(2, 320), f"{LAYER}.lora_up.weight": random(320, 2)}
    save_file(tensors, folder / "a.safetensors", {"ss_network_dim": "2", "ss_output_name": "a run"})
    torch.save(tensors, folder / "b.pt")
    (folder / "c.safetensors").write_bytes(b"no such format")
    assert node.validate_inputs("mine/a.safetensors") is True and node.validate_inputs(None) is True
    assert "mine/b.pt is not a safetensors file" in node.validate_inputs("mine/b.pt")
    assert "is not in models/loras" in node.validate_inputs("nowhere.safetensors")
    shown: list[str] = []
    node.show = lambda text: shown.append(text)
    try:
        (lora,) = node.execute(file="mine/a.safetensors").result
        for name in ("b.pt", "c.safetensors"):
            with pytest.raises(UserError, match=rf"^mine/{name} (is not a safetensors file|cannot be read)"):
                load_lora(folder / name, f"mine/{name}")
    finally:
        del node.show
    assert all(torch.equal(lora[key], tensor) for key, tensor in tensors.items()) and lora.keys() == tensors.keys()
    assert (lora.run_name, lora.file) == ("a run", "mine/a.safetensors")
    assert "2 tensors" in shown[0] and "rank 2" in shown[0]
    before = node.fingerprint_inputs("mine/a.safetensors")
    save_file({"x": torch.zeros(2)}, folder / "a.safetensors")
    assert node.fingerprint_inputs("mine/a.safetensors") != before
    save_file({}, folder / "a.safetensors")
    with pytest.raises(UserError, match="holds no tensors"):
        load_lora(folder / "a.safetensors", "a.safetensors")
