"""A LoRA of ours in other programs' hands: ComfyUI's loaders, diffusers and peft compute what we trained.

Differences are measured against what the LoRA changes, not against the whole output, which hides a lot.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from support import small_models
from support.reference import Ask, an_ask, ask_host, ask_twin, diffusers_twin
from support.rig import rig, sample
from torch import Tensor

pytest.importorskip("diffusers")
pytest.importorskip("peft")
pytestmark = pytest.mark.usefixtures("comfy_host")

MODELS = ("sd15_two", "sdxl", "sd3")
RANK = 4
ALPHAS = (4.0, 2.0)  # alpha / rank is 1, and is not


@dataclass(frozen=True)
class Made:
    """A LoRA, and what the model answers to one question with and without it while it is being trained."""

    name: str
    patcher: Any
    twin: Any
    ask: Ask
    lora: Any
    base: Tensor
    trained: Tensor

    def off(self, other: Tensor) -> float:
        """How far an answer is from the trained one, relative to what the LoRA changes."""
        return float((other.detach() - self.trained).norm() / (self.trained - self.base).norm())


@pytest.fixture(scope="module")
def make(small_models_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Made]]:
    """Makes a LoRA of a model and alpha; model and diffusers twin are built once."""

    @functools.cache
    def load(name: str) -> tuple[Any, Any]:
        patcher = small_models.build(name, small_models_folder)
        return patcher, diffusers_twin(name, patcher)

    @functools.cache
    def made(name: str, alpha: float) -> Made:
        (patcher, twin), ask = load(name), an_ask(name)
        base = as_loaded(patcher, ask)
        work = tmp_path_factory.mktemp("work")
        with rig(name, small_models_folder, work, patcher=patcher, rank=RANK, alpha=alpha, steps=2) as it:
            it.train()
            with torch.no_grad():
                for n, layer in enumerate(it.network.adapters):  # two steps alone would be faint
                    more = torch.randn(layer.up.master.shape, generator=torch.Generator().manual_seed(n)) * 0.1
                    layer.up.master.add_(more.to(layer.up.master.device))
                it.network.flat.refresh()
            return Made(name, patcher, twin, ask, lora_of(it), base, ask_host(patcher, ask))

    yield made
    made.cache_clear()
    load.cache_clear()


def lora_of(it: Any) -> Any:
    """The LORA_MODEL of a rig, as a run hands it on."""
    from lora_workbench.training.run.keeper import Keeper

    keeper = Keeper(it.model, it.setup.plan, it.run, it.setup.precision, it.setup.ladder, it.sink, (0, 0), 0.0)
    return keeper.lora_model({"ss_note": "a test"})


def as_loaded(patcher: Any, ask: Ask) -> Tensor:
    """What a MODEL answers once the host has loaded it, its patches baked into the weights."""
    import comfy.model_management

    with torch.inference_mode():
        comfy.model_management.load_models_gpu([patcher])
    return ask_host(patcher, ask)


def save(
    lora: Any, name: str = "interop", *, precision: str = "fp32", layout: str = "kohya", overwrite: bool = True
) -> Path:
    """Our SaveLoRA."""
    from lora_workbench.training.files.save import save_lora

    return save_lora(lora, name, precision=precision, layout=layout, overwrite=overwrite)


def apply(model: Any, lora: Any, strength: float = 1.0) -> Any:
    """Our ApplyLoRA."""
    from lora_workbench.training.host.apply import apply_lora

    return apply_lora(model, None, lora, strength, strength)[0]


def lora_loader(model: Any, file: Path, strength: float = 1.0) -> Any:
    """The host's LoraLoader, which takes a name from its list."""
    import nodes

    with torch.inference_mode():
        return nodes.LoraLoader().load_lora(model, None, file.name, strength, strength)[0]


def unet_loader(name: str) -> Any:
    from diffusers.loaders import StableDiffusionLoraLoaderMixin, StableDiffusionXLLoraLoaderMixin

    return StableDiffusionXLLoraLoaderMixin if name == "sdxl" else StableDiffusionLoraLoaderMixin


# --- the same numbers everywhere -------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("name", MODELS)
def test_a_kohya_file_in_comfyui(name, alpha, make):
    made = make(name, alpha)
    assert made.off(made.base) == 1
    assert torch.equal(made.base, as_loaded(made.patcher, made.ask))
    assert made.off(as_loaded(lora_loader(made.patcher, save(made.lora)), made.ask)) < 1e-3


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("name", ["sd15_two", "sdxl"])  # diffusers passes over kohya's names for SD3
def test_a_kohya_file_in_diffusers(name, alpha, make):
    made, loader = make(name, alpha), unet_loader(name)
    tensors, alphas = loader.lora_state_dict(str(save(made.lora)), unet_config=made.twin.config)
    loader.load_lora_into_unet(tensors, alphas, made.twin)
    try:
        answer = ask_twin(made.twin, made.ask)
    finally:
        made.twin.unload_lora()
    assert made.off(answer) < 1e-3


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("name", MODELS)
def test_a_peft_file_in_diffusers(name, alpha, make):
    made = make(name, alpha)
    component = "transformer" if name == "sd3" else "unet"
    made.twin.load_lora_adapter(str(save(made.lora, layout="peft")), prefix=component)
    try:
        answer = ask_twin(made.twin, made.ask)
    finally:
        made.twin.unload_lora()
    assert made.off(answer) < 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_a_peft_file_in_plain_peft(name, make):
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
    from safetensors.torch import load_file

    made = make(name, 2.0)
    tensors = {key.partition(".")[2]: tensor for key, tensor in load_file(save(made.lora, layout="peft")).items()}
    modules = sorted({key.rpartition(".lora_")[0] for key in tensors})
    inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=modules), made.twin)
    try:
        result = set_peft_model_state_dict(made.twin, tensors)
        answer = ask_twin(made.twin, made.ask)
    finally:
        made.twin.unload_lora()
    assert not result.unexpected_keys
    assert not [key for key in result.missing_keys if "lora_" in key]
    assert made.off(answer) < 1e-3


def test_a_peft_file_in_comfyui(make):
    """Of a transformer; a UNet's attention layers the host does not know by these names."""
    made = make("sd3", 2.0)
    file = save(made.lora, layout="peft")
    assert made.off(as_loaded(lora_loader(made.patcher, file), made.ask)) < 1e-3


# --- in the graph ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [1.0, -0.6])
@pytest.mark.parametrize("name", MODELS)
def test_apply_lora_samples_what_lora_loader_samples(name, strength, make):
    made = make(name, 2.0)
    ours = sample(apply(made.patcher, made.lora, strength), name)
    assert torch.equal(ours, sample(lora_loader(made.patcher, save(made.lora), strength), name))
    assert not torch.equal(ours, sample(made.patcher, name))


@pytest.mark.parametrize("name", MODELS)
def test_strength_zero_is_the_model_itself(name, make):
    made = make(name, 2.0)
    base = sample(made.patcher, name)
    assert torch.equal(base, sample(apply(made.patcher, made.lora, 0.0), name))
    sample(apply(made.patcher, made.lora), name)
    assert torch.equal(base, sample(made.patcher, name)), "the LoRA stayed on the MODEL that came in"


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("layout", ["kohya", "peft"])
def test_half_precision_files_are_close(precision, layout, make):
    made = make("sd3", 2.0)
    file = save(made.lora, precision=precision, layout=layout)
    off = made.off(as_loaded(lora_loader(made.patcher, file), made.ask))
    # Each number of up and down is rounded to 11 bits, or to 8.
    assert off < {"fp16": 1e-3, "bf16": 8e-3}[precision]
    assert off > 1e-5, "that was not rounded"


@pytest.mark.parametrize("name", MODELS)
def test_the_hosts_own_nodes_take_our_lora(name, make, comfy_host):
    import folder_paths
    from comfy_extras.nodes_train import LoraModelLoader, SaveLoRA
    from safetensors.torch import load_file

    made = make(name, 2.0)
    theirs = LoraModelLoader.execute(made.patcher, made.lora, 1.0)[0]
    assert torch.equal(sample(theirs, name), sample(apply(made.patcher, made.lora), name))

    SaveLoRA.execute(made.lora, f"loras/{name}")
    (file,) = Path(folder_paths.get_output_directory(), "loras").glob(f"{name}*.safetensors")
    written = load_file(file)
    assert set(written) == set(made.lora)
    assert all(torch.equal(written[key], made.lora[key]) for key in written)


@pytest.mark.parametrize("algorithm", ["LoRA", "LoHa", "LoKr", "OFT"])
def test_our_nodes_take_the_hosts_lora(algorithm, make):
    """What TrainLoraNode hands on: trainable tensors by module path, in bf16, biases and norms beside them."""
    made = make("sd3", 2.0)
    lora = hosts_lora(made.patcher, algorithm)
    ours = sample(apply(made.patcher, lora), "sd3")
    assert not torch.equal(ours, sample(made.patcher, "sd3"))
    file = save(lora, f"from host {algorithm}", precision="bf16")
    assert torch.equal(ours, sample(lora_loader(made.patcher, file), "sd3"))


def hosts_lora(patcher: Any, algorithm: str) -> dict[str, Tensor]:
    """A LORA_MODEL as the host's TrainLoraNode makes it."""
    from comfy.weight_adapter import adapter_maps

    lora: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(1)
    with torch.inference_mode(False):
        for path, module in patcher.model.named_modules():
            if not hasattr(module, "weight_function") or getattr(module, "weight", None) is None:
                continue
            if module.weight.ndim >= 2:
                adapter = adapter_maps[algorithm].create_train(module.weight, rank=2, alpha=1.0).to(torch.bfloat16)
                lora |= {f"{path}.{name}": parameter for name, parameter in adapter.named_parameters()}
            if module.bias is not None:
                lora[f"{path}.diff_b"] = torch.nn.Parameter(torch.zeros_like(module.bias, dtype=torch.bfloat16))
        with torch.no_grad():
            for tensor in lora.values():
                if tensor.ndim:
                    tensor.add_((torch.randn(tensor.shape, generator=generator) * 0.02).to(tensor.device))
    return lora


def test_a_lora_of_another_model_is_refused(make):
    from lora_workbench.training.errors import UserError

    with pytest.raises(UserError, match=r"does not fit this MODEL \(SD3\)"):
        apply(make("sd3", 2.0).patcher, make("sd15_two", 2.0).lora)


# --- SaveLoRA --------------------------------------------------------------------------------------------


def test_a_saved_file_is_in_the_hosts_list_at_once(make):
    """The host keeps its list until the folder's time changes, which on some disks is kept in whole seconds."""
    import folder_paths

    lora, folder = make("sd3", 2.0).lora, save(make("sd3", 2.0).lora).parent
    os.utime(folder, (1e9, 1e9))
    assert "fresh.safetensors" not in folder_paths.get_filename_list("loras")
    file = save(lora, "fresh")
    os.utime(folder, (1e9, 1e9))
    assert "fresh.safetensors" in folder_paths.get_filename_list("loras")
    assert folder_paths.get_full_path("loras", "fresh.safetensors") == str(file)


def test_nothing_is_overwritten_unless_told(make):
    lora, other = make("sd3", 2.0).lora, make("sd3", 4.0).lora
    first = save(lora, "taken", overwrite=False)
    before = first.read_bytes()
    assert save(other, "taken", overwrite=False).name == "taken-2.safetensors"
    assert save(other, "taken", overwrite=False).name == "taken-3.safetensors"
    assert first.read_bytes() == before
    assert save(other, "taken", overwrite=True) == first
    assert first.read_bytes() != before


def test_an_empty_name_is_that_of_the_run(make):
    """A LoRA of ComfyUI's own trainer is a dict that names no run; it is saved all the same."""
    from lora_workbench.training.lora import LoraModel

    lora = make("sd3", 2.0).lora
    named = LoraModel(lora, lora.layers, {"ss_output_name": "of a run", "ss_seed": "3"}, lora.key_map)
    assert save(named, "").name == "of a run.safetensors"
    assert save(named, " ", overwrite=False).name == "of a run-2.safetensors"
    assert save(named, "chosen").name == "chosen.safetensors"
    assert save(dict(lora), "").name == "lora.safetensors"


@pytest.mark.parametrize("layout", ["kohya", "peft"])
def test_a_file_the_host_cannot_read_whole_is_not_saved(layout, make):
    import folder_paths
    from lora_workbench.training.errors import UserError
    from lora_workbench.training.lora import LoraModel

    lora = make("sd3", 2.0).lora
    good = save(lora, f"checked {layout}", layout=layout)
    before, files = good.read_bytes(), sorted(good.parent.iterdir())
    lost = next(iter(lora.layers.values()))
    names = {lost.kohya, lost.module, *(target.module for target in lost.diffusers)}
    cut = {name: place for name, place in lora.key_map.items() if name not in names}
    damaged = LoraModel(lora, lora.layers, lora.metadata, cut)
    for overwrite in (False, True):
        with pytest.raises(UserError, match="was not saved"):
            save(damaged, f"checked {layout}", layout=layout, overwrite=overwrite)
    assert sorted(good.parent.iterdir()) == files
    assert good.read_bytes() == before
    assert good.name in folder_paths.get_filename_list("loras")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_what_is_read_is_what_was_written(precision, make):
    from safetensors import safe_open
    from safetensors.torch import load_file

    lora = make("sd15_two", 2.0).lora
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    file = save(lora, precision=precision)
    read = load_file(file)
    assert set(read) == set(lora)
    assert all(torch.equal(read[key], tensor.to(dtype)) for key, tensor in lora.items())
    with safe_open(file, "pt") as opened:
        assert opened.metadata()["ss_note"] == "a test"


@pytest.mark.parametrize("name", ["sd15_two", "sdxl"])
def test_a_peft_file_of_a_unet_is_saved_with_a_word_about_comfyui(name, make, caplog):
    with caplog.at_level(logging.INFO):
        assert save(make(name, 2.0).lora, layout="peft").exists()
    assert "For ComfyUI, save in the kohya format" in caplog.text
