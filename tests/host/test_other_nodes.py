"""A MODEL that other nodes had in hand: replaced forwards, compiled blocks; and models with habits of their own."""

from __future__ import annotations

import sys
from typing import Any
from unittest import mock

import pytest
import torch
from support import small_models
from support.rig import Snapshot, rig, sample, trained, trained_tensors


def lora_for(patcher: Any, seed: int = 3) -> dict[str, torch.Tensor]:
    """A LoRA of rank 2 on the attention layers of a model, under the host's own names."""
    draw, lora = torch.Generator().manual_seed(seed), {}
    for path, module in patcher.model.diffusion_model.named_modules():
        if path.endswith(("attn1.to_q", "attn1.to_v")):
            out, wide = module.weight.shape
            lora[f"diffusion_model.{path}.lora_A.weight"] = torch.randn(2, wide, generator=draw) * 0.05
            lora[f"diffusion_model.{path}.lora_B.weight"] = torch.randn(out, 2, generator=draw) * 0.05
    return lora


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_lora_that_the_host_puts_into_forwards_is_trained_upon(
    checkpointing: bool, comfy_host: Any, small_models_folder: Any, tmp_path: Any
) -> None:
    """Load LoRA (Bypass) replaces forwards: the same training as with the LoRA baked into the weights."""
    import comfy.sd

    if not hasattr(comfy.sd, "load_bypass_lora_for_models"):
        pytest.skip("this ComfyUI has no bypass LoRA")
    found = {}
    settings = {"steps": 3, "gradient_checkpointing": checkpointing}
    for way in ("load_lora_for_models", "load_bypass_lora_for_models"):
        base = small_models.build("sd15", small_models_folder)
        with torch.inference_mode():
            patcher = getattr(comfy.sd, way)(base, None, lora_for(base), 0.8, 0.0)[0]
        first, before = sample(patcher, "sd15"), Snapshot(patcher)
        with rig("sd15", small_models_folder, tmp_path / way, patcher=patcher, **settings) as it:
            losses = it.train().losses
            found[way] = losses, [tensor.clone() for tensor in trained_tensors(it.network)]
        assert before.differences(Snapshot(patcher)) == []
        assert torch.equal(first, sample(patcher, "sd15"))
    (baked, weights), (bypass, others) = found.values()
    assert bypass == pytest.approx(baked, rel=1e-4)
    for one, other in zip(weights, others, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=2e-4)
    plain = trained("sd15", small_models_folder, tmp_path / "plain", **settings)
    assert not all(torch.allclose(one, other, atol=2e-4) for one, other in zip(weights, plain, strict=True))


def test_a_layer_under_the_hosts_lora_saves_no_weight(
    comfy_host: Any, small_models_folder: Any, tmp_path: Any
) -> None:
    """Bypass mode is for quantized models: their weights are unpacked for one use each."""
    import comfy.sd

    if not hasattr(comfy.sd, "load_bypass_lora_for_models"):
        pytest.skip("this ComfyUI has no bypass LoRA")
    file = next(small_models_folder.glob("sd15-*.safetensors"))
    with torch.inference_mode():
        base = comfy.sd.load_diffusion_model(str(file), model_options={"dtype": torch.float8_e4m3fn})
        patcher = comfy.sd.load_bypass_lora_for_models(base, None, lora_for(base), 0.8, 0.0)[0]
    with rig("sd15", small_models_folder, tmp_path, patcher=patcher) as it:
        saved, modules = set(), dict(it.model.model.diffusion_model.named_modules())
        bypassed = [module for path, module in modules.items() if path.endswith(("attn1.to_q", "attn1.to_v"))]
        assert bypassed and all("forward" in vars(module) for module in bypassed)

        def note(tensor: torch.Tensor) -> torch.Tensor:
            saved.add(tuple(tensor.shape))
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            it.step()
    weights = {tuple(module.weight.shape) for module in bypassed}
    assert saved and not (weights | {shape[::-1] for shape in weights}) & saved


@pytest.mark.long
@pytest.mark.parametrize("part", ["diffusion_model", "diffusion_model.input_blocks.1.1.transformer_blocks.0"])
def test_what_is_compiled_is_trained_under_its_own_names(
    part: str, comfy_host: Any, small_models_folder: Any, tmp_path: Any
) -> None:
    """As nodes that compile a model or single blocks do it: each is an object patch."""
    from lora_workbench.training.run.keeper import Keeper

    expected = trained("sd15", small_models_folder, tmp_path / "plain", steps=2)
    patcher = small_models.build("sd15", small_models_folder)
    with torch.inference_mode():
        compiled = torch.compile(patcher.get_model_object(part), backend="eager")
        patcher.add_object_patch(part, compiled)
    sample(patcher, "sd15")
    assert type(patcher.get_model_object(part)).__name__ == "OptimizedModule"
    before = Snapshot(patcher)
    with rig("sd15", small_models_folder, tmp_path, patcher=patcher, steps=2) as it:
        it.train()
        keeper = Keeper(it.model, it.setup.plan, it.run, it.setup.precision, it.setup.ladder, it.sink, (0, 0), 0.0)
        names = list(keeper.lora_model({}))
        got = [tensor.clone() for tensor in trained_tensors(it.network)]
    assert names and not [name for name in names if "orig_mod" in name]
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))
    assert before.differences(Snapshot(patcher)) == []
    assert type(patcher.get_model_object(part)).__name__ == "OptimizedModule"


def test_attention_without_options_is_torchs(comfy_host: Any, small_models_folder: Any, tmp_path: Any) -> None:
    """PixArt calls the host's attention without the options that carry ours; the host's own may have no backward."""
    import comfy.ldm.modules.attention as attention

    def no_backward(q: Any, k: Any, v: Any, heads: Any, *args: Any, **keywords: Any) -> Any:
        with torch.no_grad():
            return attention.attention_basic(q, k, v, heads, *args, **keywords)

    with rig("pixart", small_models_folder, tmp_path, side=272, steps=2) as it:
        expected = it.train().losses
    users = [module for name, module in sys.modules.items() if name.startswith("comfy.ldm.")]
    users = [module for module in users if hasattr(module, "optimized_attention")]
    patches = [mock.patch.object(module, "optimized_attention", no_backward) for module in users]
    for patch in patches:
        patch.start()
    try:
        with rig("pixart", small_models_folder, tmp_path, side=272, steps=2) as it:
            assert it.train().losses == expected
    finally:
        for patch in patches:
            patch.stop()
    assert len(users) > 3


@pytest.mark.parametrize("name", ["pixeldit", "pid"])
def test_a_model_that_adds_and_multiplies_in_place(
    name: str, comfy_host: Any, small_models_folder: Any, tmp_path: Any
) -> None:
    """PixelDiT and PiD of newer hosts: plain and checkpointed give the same, and a backward that is right."""
    if not small_models.is_known(name):
        pytest.skip("this ComfyUI does not know the model")
    found = []
    for checkpointing in (False, True):
        settings = {"side": 512, "batch_size": 1, "gradient_checkpointing": checkpointing}
        with rig(name, small_models_folder, tmp_path, **settings) as it:
            with torch.no_grad():
                for n, view in enumerate(it.network.flat.views):
                    view.master.copy_(torch.randn(view.master.shape, generator=torch.Generator().manual_seed(n)) * 0.1)
            it.step()
            found.append(it.network.flat.total.clone())
            if not checkpointing:
                check_by_differences(it)
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


def check_by_differences(it: Any) -> None:
    """The gradient along a random direction is the slope of the loss along it."""
    flat = it.network.flat
    gradient, here = flat.total.clone(), flat.master.clone()
    along = torch.randn(here.shape, generator=torch.Generator().manual_seed(9))
    along *= (gradient != 0) / along.norm()
    along += gradient / gradient.norm()
    reach, losses = 1e-2, []
    for sign in (1, -1):
        flat.master.copy_(here + sign * reach * along)
        losses.append(float(it.step().losses.double().mean()))
    flat.master.copy_(here)
    flat.begin_step()
    it.step()
    slope = (losses[0] - losses[1]) / (2 * reach)
    # A step's loss is divided by the pictures that it holds.
    assert slope == pytest.approx(float(gradient.double() @ along.double()), rel=0.05)
