"""Base models whose weights are quantized: each kind that the host knows, loaded by the host from a real file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from support import small_models
from support.gguf_layers import packed_operations
from support.rig import Snapshot, rig, sample
from torch import Tensor, nn

FP8 = torch.float8_e4m3fn
GROUP = 64  # of a rotation
LAYER = "joint_blocks.0.x_block.attn.qkv"

Stored = tuple[dict[str, Tensor], Tensor]  # a layer's tensors by suffix, and what its weight stands for


def fp8(weight: Tensor, scale_name: str, dtype: torch.dtype = FP8) -> Stored:
    scale = weight.abs().max() / 100
    packed = (weight / scale).to(dtype)
    return {"weight": packed, scale_name: scale}, packed.float() * scale


def int8(weight: Tensor, per_row: bool) -> Stored:
    scale = (weight.abs().amax(1, keepdim=True) if per_row else weight.abs().max()) / 127
    packed = (weight / scale).round().to(torch.int8)
    return {"weight": packed, "weight_scale": scale}, packed.float() * scale


def by_host(weight: Tensor, layout: str, **options: Any) -> Stored:
    """Quantized by the host's own code; for kinds whose packing nobody else documents."""
    from comfy.quant_ops import QuantizedTensor

    packed = QuantizedTensor.from_float(weight, layout, **options)
    return packed.state_dict("weight"), packed.dequantize()


def awq(weight: Tensor) -> Stored:
    """The input is multiplied by a factor per channel before the layer: the weight stands for the product."""
    factor = torch.linspace(0.5, 2, weight.shape[1])
    stored, values = by_host(weight / factor, "TensorCoreNVFP4Layout")
    return {**stored, "pre_quant_scale": factor}, values * factor


# How a weight [out, in] is stored, by the name of its format in the host and what else the file says of the layer.
ROTATED = {"convrot_groupsize": GROUP}
KINDS: dict[str, tuple[str, dict[str, Any], Callable[[Tensor], Stored]]] = {
    "fp8 mixed": ("float8_e4m3fn", {}, lambda w: fp8(w, "weight_scale")),
    "fp8 e5m2": ("float8_e5m2", {}, lambda w: fp8(w, "weight_scale", torch.float8_e5m2)),
    "mxfp8": ("mxfp8", {}, lambda w: by_host(w, "TensorCoreMXFP8Layout")),
    "nvfp4": ("nvfp4", {}, lambda w: by_host(w, "TensorCoreNVFP4Layout")),
    "nvfp4 awq": ("nvfp4", {}, awq),
    "int8": ("int8_tensorwise", {}, lambda w: int8(w, False)),
    "int8 rows": ("int8_tensorwise", {}, lambda w: int8(w, True)),
    "int8 convrot": (
        "int8_tensorwise", {"convrot": True, **ROTATED},
        lambda w: by_host(w, "TensorWiseINT8Layout", per_channel=True, convrot=True, **ROTATED),
    ),
    "convrot w4a4": ("convrot_w4a4", ROTATED, lambda w: by_host(w, "TensorCoreConvRotW4A4Layout", **ROTATED)),
    "w4a8": ("asym_w4a8_int8", ROTATED, lambda w: by_host(w, "AsymW4A8Int8Layout", **ROTATED)),
}  # fmt: skip
GGUF = ("Q8_0", "Q5_1", "Q4_0", "BF16")
EVERY = ["fp8 scaled", *KINDS, *GGUF]


@pytest.fixture(scope="module")
def weights(comfy_host: Any) -> dict[str, Tensor]:
    """A small SD3; its biases are exact in fp8, in which some hosts keep them."""
    state = small_models.diffusion_weights(small_models.spec_of("sd3"))
    return {key: value.to(FP8).float() if key.endswith("bias") else value.float() for key, value in state.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


class Quantized:
    """A small SD3 in one of the kinds, and its twin with plain weights of the same values."""

    def __init__(self, kind: str, weights: dict[str, Tensor], folder: Path) -> None:
        from comfy.quant_ops import QUANT_ALGOS

        self.kind, self.stored = kind, dict[str, dict[str, Tensor]]()
        name, more, quantize = KINDS.get(kind, ("", {}, lambda w: fp8(w, "scale_weight")))
        if name and name not in QUANT_ALGOS:
            pytest.skip(f"this ComfyUI does not know the quantization {name}")
        tensors, self.values, layers = dict(weights), dict(weights), {}
        for key, weight in weights.items():
            layer = key.removesuffix(".weight")
            if kind in GGUF or layer == key or weight.ndim != 2:
                continue
            if name and not layer.startswith("joint_blocks."):
                continue  # the host reads widths off the others, which files of these kinds leave as they are
            self.stored[layer], self.values[key] = quantize(weight)
            del tensors[key]
            tensors |= {f"{layer}.{suffix}": tensor for suffix, tensor in self.stored[layer].items()}
            layers[layer] = {"format": name, **more}
        options: dict[str, Any] = {}
        metadata = None
        if kind == "fp8 scaled":
            tensors["scaled_fp8"] = torch.zeros(2).to(FP8)  # two: to multiply in full precision
        elif kind in GGUF:
            options["custom_operations"] = packed_operations(kind)
        else:
            metadata = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}
        self.patcher = load(tensors, folder / "quantized.safetensors", metadata, options)
        if kind in GGUF:
            for path, module in self.patcher.model.diffusion_model.named_modules():
                if hasattr(module, "cast_bias_weight"):
                    self.values[f"{path}.weight"] = module.weight.values()
        self.twin = load(self.values, folder / "twin.safetensors")
        self.layer = self.patcher.model.diffusion_model.get_submodule(LAYER)


def load(tensors: dict[str, Tensor], file: Path, metadata: Any = None, options: Any = None) -> Any:
    import comfy.sd
    from safetensors.torch import save_file

    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, file, metadata)
    with torch.inference_mode():
        return comfy.sd.load_diffusion_model(str(file), model_options=options or {})


def gradients(patcher: Any, folder: Path, **settings: Any) -> dict[str, Tensor]:
    with rig("sd3", folder, folder, patcher=patcher, **settings) as it:
        for adapter in it.network.adapters:
            source = torch.Generator().manual_seed(adapter.index)
            adapter.up.master.copy_(torch.randn(adapter.up.master.shape, generator=source) * 0.02)
        it.step()
        return {
            f"{adapter.path} {side}": getattr(adapter, side).total.clone()
            for adapter in it.network.adapters for side in ("down", "up")
        }  # fmt: skip


@pytest.mark.parametrize("copies", [True, False], ids=["copied", "borrowed"])
@pytest.mark.parametrize("kind", EVERY)
def test_gradients_are_those_of_the_dequantized_model(
    kind: str, copies: bool, weights: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    from lora_workbench.training.host.layers import Weights

    made = Quantized(kind, weights, folder)
    for key, values in made.values.items():  # what was packed is still the same model
        assert (values - weights[key]).norm() < 0.25 * weights[key].norm() + 1e-6
    expected = gradients(made.twin, folder)
    if not copies:
        monkeypatch.setattr(Weights, "copy_size", 0)
    caplog.clear()
    got = gradients(made.patcher, folder)
    assert expected.keys() == got.keys()
    for name, gradient in expected.items():
        assert gradient.norm() > 0 or "context_block" in name, name
        assert (got[name] - gradient).norm() <= 1e-3 * gradient.norm(), name
    assert not [record.message for record in caplog.records if "Quantized" in record.message]


@pytest.mark.parametrize("kind", EVERY)
def test_trains_and_is_given_back(kind: str, weights: Any, folder: Path) -> None:
    made = Quantized(kind, weights, folder)
    first = sample(made.patcher, "sd3")
    before, packed = Snapshot(made.patcher), layout_of(made.layer.weight)
    with rig("sd3", folder, folder, patcher=made.patcher, precision="bf16", epochs=4) as it:
        losses = it.train().losses
    assert (first - sample(made.twin, "sd3")).norm() < 0.3 * first.norm()  # the host computes with the same weights
    assert len(losses) == 8 and sum(losses[-4:]) < sum(losses[:4]) * 1.2
    assert before.differences(Snapshot(made.patcher)) == []
    assert layout_of(made.layer.weight) == packed
    assert torch.equal(first, sample(made.patcher, "sd3"))


def layout_of(weight: Any) -> Any:
    """What the host says of a packed weight besides its data."""
    parameters = getattr(weight, "_params", None) or getattr(weight, "_layout_params", None)
    return repr(parameters), weight.dtype


@pytest.mark.parametrize("is_inference", [True, False])
def test_a_weight_is_unpacked_in_the_compute_dtype(is_inference: bool, comfy_host: Any) -> None:
    """The host may unpack into bf16. Training in fp32 loses nothing to that, and changes nothing of the host's."""
    from comfy.quant_ops import QuantizedTensor
    from lora_workbench.training.host.quantized import unpacked

    with torch.inference_mode():
        draw = torch.Generator().manual_seed(1)
        packed = QuantizedTensor.from_float(
            torch.randn(8, 16, generator=draw).bfloat16(), "TensorCoreFP8Layout", scale=torch.tensor(0.0123)
        )
        before = layout_of(packed)
    with torch.inference_mode(is_inference):
        values = unpacked(packed, torch.float32)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, packed._qdata.float() * 0.0123)
    assert layout_of(packed) == before


@pytest.mark.parametrize("kind", EVERY)
def test_memory_is_counted_as_stored_and_copies_as_computed(kind: str, weights: Any, folder: Path) -> None:
    from lora_workbench.training.host.layers import Weights
    from lora_workbench.training.host.quantized import stored_size

    made = Quantized(kind, weights, folder)
    rows, columns = weights[f"{LAYER}.weight"].shape
    bias = made.layer.bias.numel() * made.layer.bias.element_size()
    if kind in GGUF:
        bits = {"Q8_0": 8.5, "Q5_1": 6, "Q4_0": 4.5, "BF16": 16}[kind]
        stored = rows * columns * bits / 8
    else:
        stored = sum(tensor.numel() * tensor.element_size() for tensor in made.stored[LAYER].values())
        assert kind == "fp8 scaled" or stored < rows * columns * 1.2
    assert stored_size(made.layer) == stored + bias
    counted = Weights(made.layer, torch.bfloat16, torch.device("cpu"))
    assert counted.copy_size == (rows * columns + rows) * 2
    conv = Weights(made.patcher.model.diffusion_model.x_embedder.proj, torch.bfloat16, torch.device("cpu"))
    assert conv.copy_size == weights["x_embedder.proj.weight"].numel() * 2 + weights["x_embedder.proj.bias"].numel() * 2


@pytest.mark.parametrize("kind", EVERY)
def test_a_quantization_that_unpacks_is_not_refused(kind: str, weights: Any, folder: Path) -> None:
    from lora_workbench.training.host.layers import refuse_untrainable
    from lora_workbench.training.host.quantized import quantization

    made = Quantized(kind, weights, folder)
    refuse_untrainable(made.patcher.model.diffusion_model)
    refuse_untrainable(made.twin.model.diffusion_model)
    if kind == "fp8 scaled":  # newer hosts turn it into the mixed kind
        assert quantization(made.layer) in (None, "float8_e4m3fn")
    else:  # ComfyUI 0.3.75 keeps only the layout
        assert quantization(made.layer) in (KINDS[kind][0] if kind in KINDS else kind, "TensorCoreFP8Layout")
    assert quantization(made.twin.model.diffusion_model.get_submodule(LAYER)) is None


# --- what cannot be trained ---------------------------------------------------------------------------------


class KernelLinear(nn.Module):
    """A layer of another pack: its own kernel multiplies by packed weights."""

    def __init__(self) -> None:
        super().__init__()
        self.in_features, self.out_features = 128, 384
        self.qweight = nn.Parameter(torch.zeros(384, 64, dtype=torch.int8), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        raise KeyError("no kernel")


def eight_bits() -> nn.Module:
    """A plain linear layer with integers in it, whose scale is kept elsewhere."""
    layer = nn.Linear(128, 384)
    layer.weight = nn.Parameter(torch.zeros(384, 128, dtype=torch.int8), requires_grad=False)
    return layer


def packed_layer(error: Exception | None = None, shape: tuple[int, int] = (384, 128)) -> nn.Module:
    """A GGUF layer that raises when it unpacks its weight, or gives one of another shape."""
    layer = packed_operations("Q4_0").Linear(128, 384, device="cpu", dtype=torch.float32)
    layer._load_from_state_dict({"weight": torch.ones(384, 128), "bias": torch.zeros(384)}, "")

    def unpack(*_: Any, **__: Any) -> Any:
        if error:
            raise error
        return torch.zeros(shape), layer.bias

    layer.cast_bias_weight = unpack
    return layer


def without_weight() -> nn.Module:
    layer = nn.Linear(128, 384)
    layer.weight = None  # type: ignore[assignment]
    return layer


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "kernel": (KernelLinear, r"quantized as int8 in a class that cannot be trained \(KernelLinear\)"),
    "integers": (eight_bits, "quantized as int8 and cannot be unpacked: its weight has no way"),
    "raises": (lambda: packed_layer(NotImplementedError("IQ1_S")), "quantized as Q4_0 and cannot be unpacked: IQ1_S"),
    "shape": (lambda: packed_layer(shape=(384, 72)), r"as Q4_0 and cannot be unpacked: its weight is \(384, 72\)"),
}


def put(patcher: Any, layer: nn.Module) -> None:
    parent, name = LAYER.rsplit(".", 1)
    setattr(patcher.model.diffusion_model.get_submodule(parent), name, layer)


@pytest.mark.parametrize("name", [*REFUSED, "missing"])
def test_what_cannot_be_unpacked_is_refused_before_any_work(
    name: str, comfy_host: Any, small_models_folder: Path, folder: Path
) -> None:
    from lora_workbench.training.config import TrainConfig
    from lora_workbench.training.errors import UserError
    from lora_workbench.training.host.model import HostModel
    from lora_workbench.training.preflight import check

    patcher = small_models.build("sd3", small_models_folder)
    with rig("sd3", small_models_folder, folder) as it:
        dataset = it.dataset
    layer, said = REFUSED.get(name, (without_weight, "has no weight for the layer"))
    put(patcher, layer())
    clip, vae = mock.Mock(), mock.Mock()
    with torch.inference_mode(), pytest.raises(UserError, match=said) as raised:
        check(HostModel(patcher), clip, vae, dataset, TrainConfig(train_without_captions=True))
    assert not clip.mock_calls and not vae.mock_calls
    assert LAYER in str(raised.value)
    assert str(raised.value).endswith("Load a complete file." if name == "missing" else
                                      "Load the bf16 or fp8 file of this model.")  # fmt: skip


SHAPES = "mat1 and mat2 shapes cannot be multiplied (8x128 and 72x384)"


@pytest.mark.parametrize("error", [RuntimeError(SHAPES), KeyError("Q4_0"), TypeError("no dtype"), AttributeError("x")])
def test_no_error_of_a_quantized_layer_blames_the_clip(
    error: Exception, comfy_host: Any, small_models_folder: Path, folder: Path
) -> None:
    from lora_workbench.training.errors import UserError

    patcher = small_models.build("sd3", small_models_folder)
    put(patcher, packed_layer(error))
    failed = pytest.raises(UserError, match="Q4_0 and cannot be unpacked")
    with failed as raised, rig("sd3", small_models_folder, folder, patcher=patcher):
        pass
    assert "CLIP" not in str(raised.value)


@pytest.mark.parametrize("error", [RuntimeError(SHAPES), TypeError("of a patch")])
def test_no_error_of_a_patch_blames_the_clip(
    error: Exception, comfy_host: Any, small_models_folder: Path, folder: Path
) -> None:
    """Another node's patch is applied when a layer gets its weight."""

    def patch(weight: Tensor) -> Tensor:
        raise error

    patcher = small_models.build("sd3", small_models_folder)
    patcher.add_weight_wrapper(f"diffusion_model.{LAYER}.weight", patch)
    failed = pytest.raises(type(error), match="shapes|patch")
    with failed as raised, rig("sd3", small_models_folder, folder, patcher=patcher):
        pass
    assert "CLIP" not in str(raised.value)


@pytest.mark.parametrize("kind", ["fp8 mixed", "Q8_0"])
def test_a_wrong_clip_is_still_told(kind: str, weights: Any, folder: Path) -> None:
    """A packed layer gets an input of another width: that is no fault of the layer."""
    from lora_workbench.training.errors import UserError

    made = Quantized(kind, weights, folder)
    narrow = small_models.conditioning("sd3")
    narrow[0][0] = narrow[0][0][..., :40]
    foreign = mock.patch.object(small_models, "conditioning", lambda *_, **__: narrow)
    failed = pytest.raises(UserError, match="CLIP does not go with this MODEL .* 40 wide")
    with foreign, failed, rig("sd3", folder, folder, patcher=made.patcher):
        pass


def test_an_error_in_the_hosts_layers_is_no_wrong_clip(comfy_host: Any) -> None:
    """A layer of the host that this pack leaves alone, such as a norm, when its weights are missing."""
    import comfy.ops
    from lora_workbench.training.preflight import looks_like_foreign_text

    norm = comfy.ops.manual_cast.LayerNorm(4)
    norm.weight_function = None
    with pytest.raises(TypeError) as raised:
        norm(torch.zeros(1, 4))
    assert not looks_like_foreign_text(raised.value)
    assert looks_like_foreign_text(TypeError("a part of the text is missing"))
