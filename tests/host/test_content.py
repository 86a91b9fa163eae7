"""What a MODEL and a CLIP are by their content: the same in every state of loading, and nobody else's functions."""

from __future__ import annotations

from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import torch
from support import small_models
from support.gguf_layers import packed_operations
from support.session import loaded
from support.small_text import small_clip

pytestmark = pytest.mark.usefixtures("comfy_host")

SOCKETS = {"model": 0, "clip": 1}


@pytest.fixture(scope="module")
def parts(comfy_host: Any, tiny_checkpoint: Path) -> Any:
    return loaded(tiny_checkpoint)


def content(parts: Any, socket: str) -> str:
    from lora_workbench.training.host.content import clip_content, model_content

    return (model_content if socket == "model" else clip_content)(parts[SOCKETS[socket]])


def place(parts: Any, path: str) -> tuple[dict[str, Any], str]:
    """The attributes of the object at a path, and the name of the last of them."""
    socket, *names, last = path.split(".")
    return vars(reduce(lambda holder, name: getattr(holder, name), names, parts[SOCKETS[socket]])), last


METHODS = (
    "model.model.apply_model", "model.model.diffusion_model._forward", "model.model.diffusion_model.out.0.forward",
    "model.model.latent_format.process_in", "model.clone", "clip.encode_from_tokens",
    "clip.cond_stage_model.clip_l.encode_token_weights", "clip.tokenizer.tokenize_with_weights",
    "clip.tokenizer.clip_l.tokenize_with_weights", "clip.tokenizer.clip_l.tokenizer.get_vocab",
)  # fmt: skip
ATTRIBUTES = (
    "model.model.latent_format.scale_factor", "model.model.diffusion_model.middle_block.1.n_heads",
    "clip.cond_stage_model.clip_l.enable_attention_masks", "clip.tokenizer.clip_l.pad_token",
    "clip.cond_stage_model.clip_l.transformer.text_model.encoder.layers.0.self_attn.heads",
)  # fmt: skip


@pytest.mark.parametrize("path", METHODS)
def test_a_method_that_another_node_replaced_has_no_content(path, parts, monkeypatch):
    from lora_workbench.training.host.content import Unidentified

    socket = path.split(".")[0]
    assert content(parts, socket)
    holder, name = place(parts, path)
    monkeypatch.setitem(holder, name, lambda *_, **__: None)
    with pytest.raises(Unidentified, match=name):
        content(parts, socket)


def test_a_method_that_was_put_back_changes_nothing(parts, monkeypatch):
    model, before = parts[0].model, content(parts, "model")
    monkeypatch.setitem(vars(model), "apply_model", model.apply_model)
    assert content(parts, "model") == before


def test_what_another_clone_has_put_on_the_model_does_not_count(parts):
    """A sampler behind the trainer leaves its own clone loaded."""
    from lora_workbench.training.host.content import Unidentified

    before, other = content(parts, "model"), parts[0].clone()
    for path in ("diffusion_model.forward", "apply_model"):
        other.add_object_patch(path, lambda *_, **__: None)
    other.patch_model(load_weights=False)
    try:
        assert parts[0].model.apply_model(1) is None, "the patch is not on the model"
        found = content(parts, "model")
        with pytest.raises(Unidentified):
            content((other, *parts[1:]), "model")
    finally:
        other.unpatch_model(unpatch_weights=False)
    assert found == before


def test_a_hook_has_no_content(parts):
    from lora_workbench.training.host.content import Unidentified

    hook = parts[0].model.diffusion_model.out.register_forward_hook(lambda *_: None)
    try:
        with pytest.raises(Unidentified, match=r"a hook of diffusion_model\.out"):
            content(parts, "model")
    finally:
        hook.remove()


@pytest.mark.parametrize("path", ATTRIBUTES)
def test_an_attribute_that_another_node_changed_counts(path, parts, monkeypatch):
    socket = path.split(".")[0]
    before = content(parts, socket)
    holder, name = place(parts, path)
    monkeypatch.setitem(holder, name, 7)
    assert content(parts, socket) != before


def test_loading_and_encoding_change_nothing(parts, tiny_checkpoint):
    import comfy.sd

    with torch.inference_mode():
        fresh = comfy.sd.load_checkpoint_guess_config(str(tiny_checkpoint))[:3]
        known = [content(fresh, socket) for socket in SOCKETS]
        assert [content(parts, socket) for socket in SOCKETS] == known
        skipping = fresh[1].clone()
        skipping.clip_layer(-2)
        skipping.encode_from_tokens_scheduled(skipping.tokenize("zorp"))
        for patcher in (fresh[0], fresh[1].patcher):
            patcher.model_patches_to(torch.float32)
            patcher.load(torch.device("cpu"), lowvram_model_memory=1_000_000)
        assert fresh[0].model.model_lowvram
        assert [content(fresh, socket) for socket in SOCKETS] == known


@pytest.mark.parametrize("name", ["sdxl", "flux"])
def test_models_and_encoders_of_the_host_have_content(name, small_models_folder):
    parts = small_models.build(name, small_models_folder), small_clip(name)
    assert all(content(parts, socket) == content(parts, socket) for socket in SOCKETS)


def test_the_dtype_that_a_weight_is_used_in_counts(parts):
    """A host with dynamic memory keeps the file's dtype until a layer computes, and casts some weights for good."""
    from lora_workbench.training.host.identity import weights_identity

    def layer(held: torch.dtype, used: torch.dtype) -> torch.nn.Module:
        made = torch.nn.Linear(64, 64)
        made.weight = torch.nn.Parameter(torch.linspace(-1, 1, 4096).view(64, 64).half().to(held))
        torch.nn.init.zeros_(made.bias)
        made.weight_comfy_model_dtype = used  # type: ignore[assignment]
        return made

    half, single, eighth = torch.float16, torch.float32, torch.float8_e4m3fn
    assert weights_identity(layer(half, half)) != weights_identity(layer(half, eighth))
    assert weights_identity(layer(half, single)) == weights_identity(layer(single, single))
    assert weights_identity(layer(single, half)) == weights_identity(layer(half, half))


def test_layers_of_gguf_files_are_told_apart_by_their_bytes(parts):
    """Their state dict says how large they are and no more."""
    from lora_workbench.training.host.identity import weights_identity

    def layer(scale: float, kind: str = "Q8_0") -> Any:
        made = packed_operations(kind).Linear(64, 32, device="cpu", dtype=torch.float32)
        made._load_from_state_dict({"weight": scale * torch.eye(32, 64), "bias": torch.zeros(32)}, "")
        return made

    assert layer(1.0).state_dict()["weight"].is_meta
    assert weights_identity(layer(1.0)) == weights_identity(layer(1.0))
    assert len({weights_identity(layer(*made)) for made in ((1.0,), (2.0,), (1.0, "Q4_0"))}) == 3
    # The host has another node's patches on it, and kept its own weight.
    own = {"weight": layer(1.0).weight, "bias": torch.zeros(32)}
    assert weights_identity(layer(2.0), own) == weights_identity(layer(1.0))


def test_what_training_does_without_does_not_count(parts):
    """torch.compile of the sampler's calls, and another attention such as SageAttention."""
    before = content(parts, "model")
    model = parts[0].clone()
    model.add_wrapper_with_key("apply_model", "torch.compile", lambda *_: None)
    model.model_options["torch_compile_kwargs"] = {"backend": "inductor", "options": object()}
    model.model_options["transformer_options"]["optimized_attention_override"] = lambda *_, **__: None
    assert content((model, *parts[1:]), "model") == before
