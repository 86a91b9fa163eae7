"""Training on from an existing LoRA: its pairs, whatever the format of the file, and what is said of the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support import small_models
from support.rig import Rig, rig, trained_tensors

pytestmark = pytest.mark.usefixtures("comfy_host")

MODELS = ("sd15_two", "sdxl", "sd3", "flux")
FORMATS = ("kohya", "PEFT", "ComfyUI")


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


def applied(name: str, models: Path, work: Path, lora: Any) -> torch.Tensor:
    """The same with the LoRA applied by the host, and a fresh one on top that changes nothing."""
    from lora_workbench.training.host.apply import apply_lora

    with torch.inference_mode():
        patcher, _ = apply_lora(small_models.build(name, models), None, lora, 1.0, 1.0)
    with rig(name, models, work, patcher=patcher) as it:
        return output(it)


def plain_output(name: str, models: Path, work: Path) -> torch.Tensor:
    with rig(name, models, work) as it:
        return output(it)


@pytest.mark.parametrize("name", MODELS)
def test_the_first_step_is_the_lora_applied_by_the_host(name: str, small_models_folder: Path, tmp_path: Path) -> None:
    """In every format, at the file's rank and alpha instead of the trainer's; then it learns on."""
    lora = trained_lora(name, small_models_folder, tmp_path, rank=3, alpha=2.0)
    expected = applied(name, small_models_folder, tmp_path, lora)
    assert not torch.allclose(expected, plain_output(name, small_models_folder, tmp_path), atol=1e-2)
    for layout in FORMATS:
        start = written(lora, layout, tmp_path)
        with rig(name, small_models_folder, tmp_path, start_from=start, rank=8, steps=2, dropout=0.1) as it:
            found = [(layer.rank, layer.alpha) for layer in it.network.adapters]
            assert set(found) == {(3, 3.0) if layout == "PEFT" else (3, 2.0)}, layout  # a PEFT file has no alpha
            begun = [tensor.clone() for tensor in trained_tensors(it.network)]
            for layer in it.network.adapters:
                layer.dropout = 0.0
            assert (output(it) - expected).abs().max() < 1e-4, layout
            for layer in it.network.adapters:
                layer.dropout = 0.1
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
