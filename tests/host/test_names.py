"""Names of trained layers, on small models of the real host and against the real diffusers."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lora_workbench.training.files import export
from lora_workbench.training.lora import LayerNames, LoraModel
from support import small_models
from torch import nn

pytestmark = pytest.mark.usefixtures("comfy_host")

MODELS = ("sd15_two", "sdxl", "sd3", "flux", "zimage", "qwen")
# Layers outside the blocks, which nobody's LoRA adapts: diffusers holds some of them rearranged.
BLOCKS = ("input_blocks", "middle_block", "output_blocks", "joint_blocks", "double_blocks", "single_blocks",
          "layers", "context_refiner", "noise_refiner", "transformer_blocks")  # fmt: skip


@pytest.fixture(scope="module")
def load(small_models_folder: Path) -> Iterator[Callable[[str], Any]]:
    """Loads each small model once, and lets go of it before the interpreter ends."""
    cached = functools.cache(lambda name: small_models.build(name, small_models_folder))
    yield cached
    cached.cache_clear()


def bare(spec: small_models.Spec) -> Any:
    """A model of a spec without weights of its own, as much of a ModelPatcher as names need."""
    return SimpleNamespace(model=small_models._model_config(spec).get_model({}, ""))


def layers_of(model: Any, blocks_only: bool = True) -> dict[str, nn.Module]:
    """Every linear layer and 1x1 convolution, by its path."""
    return {
        f"diffusion_model.{path}": module
        for path, module in model.model.diffusion_model.named_modules()
        if (isinstance(module, nn.Linear) or getattr(module, "kernel_size", None) == (1, 1))
        and (not blocks_only or path.startswith(BLOCKS))
    }


def random_lora(model: Any, names: dict[str, LayerNames], rank: int = 2) -> LoraModel:
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for path, layer in names.items():
        shape = model.model.get_submodule(path).weight.shape
        down, up = (rank, *shape[1:]), (shape[0], rank, *shape[2:])
        tensors[f"{layer.kohya}.lora_down.weight"] = torch.randn(down, generator=generator)
        tensors[f"{layer.kohya}.lora_up.weight"] = torch.randn(up, generator=generator)
        tensors[f"{layer.kohya}.alpha"] = torch.tensor(1.0)
    return LoraModel(tensors, {layer.kohya: layer for layer in names.values()})


def host_deltas(model: Any, tensors: dict[str, torch.Tensor], key_map: dict[str, Any]) -> dict[str, torch.Tensor]:
    """What the host adds to each weight for a LoRA file."""
    import comfy.lora

    found: dict[str, torch.Tensor] = {}
    for place, patch in comfy.lora.load_lora(tensors, key_map).items():
        key, offset = (place[0], place[1]) if isinstance(place, tuple) else (place, None)
        path = key.removesuffix(".weight")
        weight = found.setdefault(path, torch.zeros_like(model.model.get_submodule(path).weight.float()))
        comfy.lora.calculate_weight([(1.0, patch, 1.0, offset, None)], weight, key)
    return found


@pytest.fixture
def keys() -> Any:
    from lora_workbench.training.host import keys

    return keys


@pytest.mark.parametrize("name", MODELS)
def test_every_layer_has_a_kohya_name_and_is_read_back(name: str, keys: Any, load: Callable[[str], Any]) -> None:
    model = load(name)
    paths = list(layers_of(model, blocks_only=False))
    names = keys.layer_names(model, paths)
    assert list(names) == paths and all(names[path].module == path for path in paths)
    assert all(layer.kohya.startswith("lora_unet_") for layer in names.values())
    assert len({layer.kohya for layer in names.values()}) == len(paths)

    lora = random_lora(model, names)
    key_map = keys.restricted_key_map(model, names)
    assert keys.read_back(export.to_kohya(lora, torch.float16), key_map) == (len(paths), [])


PUBLISHED = {
    "sd15_two": {
        "input_blocks.1.1.transformer_blocks.0.attn1.to_q":
            "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
        "input_blocks.1.1.transformer_blocks.0.attn1.to_out.0":
            "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0",
        "input_blocks.1.1.transformer_blocks.0.ff.net.0.proj":
            "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_ff_net_0_proj",
        "input_blocks.1.1.transformer_blocks.0.ff.net.2":
            "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_ff_net_2",
        "input_blocks.1.1.proj_in": "lora_unet_down_blocks_0_attentions_0_proj_in",
        "middle_block.1.proj_out": "lora_unet_mid_block_attentions_0_proj_out",
        "output_blocks.2.1.transformer_blocks.0.attn2.to_k":
            "lora_unet_up_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k",
    },
    "sdxl": {
        "input_blocks.3.1.transformer_blocks.0.attn1.to_q":
            "lora_unet_input_blocks_3_1_transformer_blocks_0_attn1_to_q",
        "input_blocks.3.1.proj_in": "lora_unet_input_blocks_3_1_proj_in",
        "output_blocks.0.1.transformer_blocks.0.attn2.to_out.0":
            "lora_unet_output_blocks_0_1_transformer_blocks_0_attn2_to_out_0",
    },
    "sd3": {
        "joint_blocks.0.x_block.attn.qkv": "lora_unet_joint_blocks_0_x_block_attn_qkv",
        "joint_blocks.0.context_block.mlp.fc1": "lora_unet_joint_blocks_0_context_block_mlp_fc1",
        "joint_blocks.0.x_block.adaLN_modulation.1": "lora_unet_joint_blocks_0_x_block_adaLN_modulation_1",
    },
    "flux": {
        "double_blocks.0.img_attn.qkv": "lora_unet_double_blocks_0_img_attn_qkv",
        "double_blocks.0.txt_mlp.2": "lora_unet_double_blocks_0_txt_mlp_2",
        "double_blocks.0.img_mod.lin": "lora_unet_double_blocks_0_img_mod_lin",
        "single_blocks.0.linear1": "lora_unet_single_blocks_0_linear1",
        "single_blocks.0.modulation.lin": "lora_unet_single_blocks_0_modulation_lin",
    },
    "zimage": {"layers.0.attention.qkv": "lora_unet_layers_0_attention_qkv"},
    "qwen": {"transformer_blocks.0.attn.to_q": "lora_unet_transformer_blocks_0_attn_to_q"},
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_kohya_names_are_the_published_ones(name: str, keys: Any, load: Callable[[str], Any]) -> None:
    expected = {f"diffusion_model.{path}": kohya for path, kohya in PUBLISHED[name].items()}
    names = keys.layer_names(load(name), list(expected))
    assert {path: layer.kohya for path, layer in names.items()} == expected


@pytest.mark.parametrize("name", MODELS)
def test_diffusers_modules_cover_every_row(name: str, keys: Any, load: Callable[[str], Any]) -> None:
    model = load(name)
    modules = layers_of(model)
    for path, layer in keys.layer_names(model, list(modules)).items():
        if name == "sd3" and path.endswith("joint_blocks.1.context_block.adaLN_modulation.1"):
            assert layer.diffusers == ()  # the last one's two halves change places in diffusers
            continue
        assert layer.diffusers, path
        component = "unet." if name.startswith("sd1") or name == "sdxl" else "transformer."
        assert all(target.module.startswith(component) for target in layer.diffusers)
        rows = 0
        for target in layer.diffusers:
            assert target.start == rows
            rows += target.rows or modules[path].weight.shape[0]
        assert rows == modules[path].weight.shape[0]


@pytest.mark.parametrize("name", ["sd3", "flux", "qwen"])
def test_both_layouts_are_the_same_to_the_host(name: str, keys: Any, load: Callable[[str], Any]) -> None:
    model = load(name)
    names = keys.layer_names(model, list(layers_of(model)))
    lora, key_map = random_lora(model, names), keys.restricted_key_map(model, names)
    peft = export.to_peft(lora, torch.float32)
    assert keys.read_back(peft, key_map) == (len(peft) // 2, [])
    from_kohya = host_deltas(model, export.to_kohya(lora, torch.float32), key_map)
    from_peft = host_deltas(model, peft, key_map)
    assert set(from_kohya) == set(from_peft) == set(names)
    for path, delta in from_kohya.items():
        torch.testing.assert_close(from_peft[path], delta)


def test_read_back_tells_what_the_host_passes_over(keys: Any, load: Callable[[str], Any]) -> None:
    model = load("sd3")
    names = keys.layer_names(model, ["diffusion_model.joint_blocks.0.x_block.mlp.fc1"])
    key_map = keys.restricted_key_map(model, names)
    tensors = dict(random_lora(model, names))
    stranger = {"lora_unet_nowhere.lora_up.weight": torch.ones(1), "lora_unet_nowhere.alpha": torch.ones(())}
    assert keys.read_back(tensors | stranger, key_map) == (1, sorted(stranger))
    assert keys.read_back(stranger, key_map) == (0, sorted(stranger))
    assert keys.read_back({}, key_map) == (0, [])


def test_the_host_passes_over_a_unets_attention_in_the_peft_layout(
    keys: Any, load: Callable[[str], Any], caplog: pytest.LogCaptureFixture
) -> None:
    """A limit of the host, which knows these layers only by the names of diffusers' former processors."""
    model = load("sdxl")
    names = keys.layer_names(model, list(layers_of(model)))
    peft = export.to_peft(random_lora(model, names), torch.float32)
    with caplog.at_level(logging.WARNING):
        _, passed_over = keys.read_back(peft, keys.restricted_key_map(model, names))
    assert passed_over == sorted(key for key in peft if ".to_" in key)
    assert not caplog.records


def test_a_layer_the_host_has_no_kohya_name_for_goes_by_its_path(
    keys: Any, load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.lora

    whole = comfy.lora.model_lora_keys_unet

    def without_kohya(base: Any, key_map: dict[str, Any]) -> dict[str, Any]:
        return {name: key for name, key in whole(base, key_map).items() if not name.startswith("lora_unet_")}

    monkeypatch.setattr(comfy.lora, "model_lora_keys_unet", without_kohya)
    model, path = load("sd3"), "diffusion_model.joint_blocks.0.x_block.mlp.fc1"
    names = keys.layer_names(model, [path])
    assert names[path].kohya == path
    lora = random_lora(model, names)
    assert keys.read_back(dict(lora), keys.restricted_key_map(model, names)) == (1, [])


def variants() -> dict[str, small_models.Spec]:
    """Models whose layers do not have the sizes that the host's diffusers names are cut for."""
    zimage, flux = small_models.SPECS["zimage"], small_models.spec_of("flux")
    lumina = {"n_heads": 2, "n_kv_heads": 1, "z_image_modulation": False}
    flux2 = {"image_model": "flux2", "mlp_ratio": 3.0, "mlp_silu_act": True, "qkv_bias": False,
             "ops_bias": False, "global_modulation": True, "guidance_embed": True, "vec_in_dim": None,
             "axes_dim": [32, 32, 32, 32], "default_ref_method": "index"}  # fmt: skip
    return {
        "lumina 2": replace(zimage, cls="Lumina2", config=zimage.config | lumina),
        "flux.2": replace(flux, cls="Flux2", config=flux.config | flux2),
    }


@pytest.mark.parametrize("name", ["lumina 2", "flux.2"])
def test_names_cut_for_another_variant_are_not_used(name: str, keys: Any) -> None:
    """The host gives Lumina 2 the diffusers names of Z-Image, and Flux.2 those of Flux.1."""
    model = bare(variants()[name])
    names = keys.layer_names(model, list(layers_of(model)))
    assert all(layer.kohya.startswith("lora_unet_") for layer in names.values())
    assert all(layer.diffusers == () for layer in names.values())
    peft = export.to_peft(random_lora(model, names), torch.float32)
    assert keys.read_back(peft, keys.restricted_key_map(model, names)) == (len(names), [])


@pytest.mark.parametrize(
    ("name", "adm", "uses_diffusers_paths"),
    [("sd15_two", None, True), ("sd2_v", None, True), ("sdxl", 2816, False)],
)
def test_which_unets_kohya_names_by_diffusers_paths(
    name: str, adm: int | None, uses_diffusers_paths: bool, keys: Any
) -> None:
    config = small_models.SPECS[name].config
    assert config["adm_in_channels"] == adm
    base = SimpleNamespace(model_config=SimpleNamespace(unet_config=config))
    assert keys._kohya_uses_diffusers_paths(base) == uses_diffusers_paths


# --- against diffusers itself ---------------------------------------------------------------------------


def diffusers_model(name: str) -> nn.Module:
    """The same small model as diffusers builds it."""
    diffusers = pytest.importorskip("diffusers")
    down, cross_down = "DownBlock2D", "CrossAttnDownBlock2D"
    up, cross_up = "UpBlock2D", "CrossAttnUpBlock2D"
    with torch.device("meta"):
        if name == "sd15_two":
            return diffusers.UNet2DConditionModel(
                block_out_channels=(320, 320), down_block_types=(cross_down, cross_down),
                up_block_types=(cross_up, cross_up), layers_per_block=1, cross_attention_dim=768,
            )  # fmt: skip
        if name == "sdxl":
            return diffusers.UNet2DConditionModel(
                block_out_channels=(320, 320, 320), down_block_types=(down, cross_down, cross_down),
                up_block_types=(cross_up, cross_up, up), layers_per_block=1, cross_attention_dim=2048,
                mid_block_type=None, transformer_layers_per_block=(0, 2, 5),
                reverse_transformer_layers_per_block=((1, 1), (1, 1), (0, 0)), use_linear_projection=True,
                addition_embed_type="text_time", addition_time_embed_dim=256,
                projection_class_embeddings_input_dim=2816,
            )  # fmt: skip
        if name == "sd3":
            return diffusers.SD3Transformer2DModel(
                sample_size=16, num_layers=2, attention_head_dim=64, num_attention_heads=2,
                joint_attention_dim=64, caption_projection_dim=128, pooled_projection_dim=64,
                pos_embed_max_size=16, qk_norm="rms_norm",
            )  # fmt: skip
        return diffusers.FluxTransformer2DModel(
            num_layers=1, num_single_layers=1, attention_head_dim=128, num_attention_heads=1,
            joint_attention_dim=64, pooled_projection_dim=32, guidance_embeds=True,
        )


@pytest.mark.parametrize("name", ["sd15_two", "sdxl", "sd3", "flux"])
def test_diffusers_has_each_module_in_this_size(name: str, keys: Any, load: Callable[[str], Any]) -> None:
    model = load(name)
    names = keys.layer_names(model, list(layers_of(model)))
    peft = export.to_peft(random_lora(model, names), torch.float32)
    theirs = diffusers_model(name)
    for key, tensor in peft.items():
        if key.startswith("diffusion_model."):
            continue
        path, _, side = key.removesuffix(".weight").partition(".")[2].rpartition(".")
        weight = theirs.get_submodule(path).weight
        assert tensor.dim() == weight.dim()
        dim = 1 if side == "lora_A" else 0
        assert tensor.shape[dim] == weight.shape[dim], key


def test_diffusers_loads_a_peft_file_and_computes_our_delta(
    tmp_path: Path, keys: Any, load: Callable[[str], Any]
) -> None:
    """A real Flux transformer with the file loaded differs from itself by exactly alpha / rank · up down."""
    pytest.importorskip("peft")
    from safetensors.torch import load_file

    model = load("flux")
    names = keys.layer_names(model, list(layers_of(model)))
    lora = random_lora(model, names)
    file = export.write_lora(tmp_path / "a", lora, precision="fp32", layout="peft")
    theirs = diffusers_model("flux").to_empty(device="cpu")
    theirs.load_lora_adapter(load_file(file), prefix="transformer")
    layer = names["diffusion_model.single_blocks.0.linear1"]
    down, up = lora[f"{layer.kohya}.lora_down.weight"], lora[f"{layer.kohya}.lora_up.weight"]
    ours = up @ down / 2
    parts = [
        theirs.get_submodule(target.module.removeprefix("transformer.")).get_delta_weight("default_0")
        for target in layer.diffusers
    ]
    torch.testing.assert_close(torch.cat(parts), ours)


def full_size(cls: str, **config: Any) -> Any:
    """A published UNet in its real size, without memory behind it."""
    import comfy.supported_models

    whole = small_models.SPECS["sd15_two"].config | config
    built = getattr(comfy.supported_models, cls)(whole)
    return SimpleNamespace(model=built.get_model({}, "", device="meta"))


def test_full_size_sd15_has_the_192_names_of_kohyas_files(keys: Any) -> None:
    """kohya's rule on diffusers' own UNet: linear layers and 1x1 convolutions inside Transformer2DModel."""
    diffusers = pytest.importorskip("diffusers")
    model = full_size(
        "SD15", channel_mult=[1, 2, 4, 4], num_res_blocks=[2] * 4, num_heads=8, context_dim=768,
        transformer_depth=[1] * 6 + [0] * 2, transformer_depth_output=[1] * 9 + [0] * 3,
    )  # fmt: skip
    with torch.device("meta"):
        theirs = diffusers.UNet2DConditionModel(cross_attention_dim=768)
    kohya = {
        f"lora_unet_{path}_{inside}".replace(".", "_")
        for path, block in theirs.named_modules()
        if type(block).__name__ == "Transformer2DModel"
        for inside, module in block.named_modules()
        if isinstance(module, nn.Linear) or getattr(module, "kernel_size", None) == (1, 1)
    }
    paths = [path for path in layers_of(model) if "transformer_blocks" in path or "proj_" in path]
    ours = keys.layer_names(model, paths)
    assert len(kohya) == 192
    assert {layer.kohya for layer in ours.values()} == kohya


def test_full_size_sdxl_has_the_722_names_of_kohyas_files(keys: Any) -> None:
    model = full_size(
        "SDXL", channel_mult=[1, 2, 4], num_res_blocks=[2] * 3, num_head_channels=64, context_dim=2048,
        transformer_depth=[0, 0, 2, 2, 10, 10], transformer_depth_output=[0, 0, 0, 2, 2, 2, 10, 10, 10],
        transformer_depth_middle=10, adm_in_channels=2816, num_classes="sequential",
        use_linear_in_transformer=True,
    )  # fmt: skip
    paths = [path for path in layers_of(model) if "transformer_blocks" in path or "proj_" in path]
    names = {layer.kohya for layer in keys.layer_names(model, paths).values()}
    assert len(names) == 722
    assert {
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
        "lora_unet_middle_block_1_transformer_blocks_9_ff_net_0_proj",
        "lora_unet_output_blocks_0_1_proj_out",
    } <= names
