"""What a MODEL, a CLIP or any value of the host is by its content, the same in every process and on every day."""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Collection, Iterator, Mapping
from types import FunctionType
from typing import Any

import torch
from comfy.weight_adapter import WeightAdapterBase
from torch import Tensor, nn

from .identity import sampled, unpatched, weights_identity

# Options that only the sampler reads; training does not run it.
_OF_THE_SAMPLER = ("sampler_", "disable_cfg1_optimization")
# What other nodes can hang on a MODEL besides its patches. Each holds functions.
_HANGERS = (
    "callbacks", "wrappers", "injections", "hook_patches", "additional_models", "weight_wrapper_patches",
    "forced_hooks",
)  # fmt: skip
# What training does without: torch.compile of the sampler's calls, and another attention such as SageAttention.
_COMPILED, _COMPILE_OPTIONS, _ATTENTION = "torch.compile", "torch_compile_kwargs", "optimized_attention_override"
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_SAMPLING = "model_sampling"
# Attributes that the host changes as it loads and encodes, and places on disk.
_PASSING = (
    "training", "model_loaded_weight_memory", "model_offload_buffer_memory", "model_lowvram", "lowvram_patch_counter",
    "skip_injection", "seed_key", "weight_function", "bias_function", "layer", "layer_idx",
    "return_projected_pooled", "embedding_directory",
)  # fmt: skip
_MOST = 100  # values of a list or dict that still is a setting; a vocabulary is not


class Unidentified(Exception):
    """A value has no content that could be compared, such as a function of another node."""


def digest(*values: object) -> str:
    """Hash values by their content. Large tensors are sampled evenly.

    Args:
        values: Plain values, tensors, modules, LoRA patches of the host, and lists and dicts of them.

    Raises:
        Unidentified: One of them holds what has no content that could be compared.
    """
    found = hashlib.sha256()
    for part in _parts(values):
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)
    return found.hexdigest()


def model_content(patcher: Any) -> str:
    """Hash everything of a MODEL that a training step depends on: weights, patches, sampling, options.

    Args:
        patcher: MODEL socket.

    Raises:
        Unidentified: Another node changed the model by functions.
    """
    _refuse_functions(patcher)
    _refuse_replaced("the latent format", patcher.model.latent_format)
    options = {
        name: value for name, value in patcher.model_options.items()
        if not str(name).startswith(_OF_THE_SAMPLER) and name != _COMPILE_OPTIONS
    }  # fmt: skip
    if transformer := options.get("transformer_options"):
        options["transformer_options"] = {name: value for name, value in transformer.items() if name != _ATTENTION}
    patched = {name: value for name, value in patcher.object_patches.items() if name != _SAMPLING}
    return digest(
        type(patcher.model).__name__, type(patcher.model.model_config).__name__,
        type(patcher.model.diffusion_model).__name__, type(patcher.model.latent_format).__name__,
        weights_identity(patcher.model.diffusion_model, unpatched(patcher, "diffusion_model.")), patcher.patches,
        _attributes(patcher.model.diffusion_model), _attributes_of(patcher.model.latent_format),
        _without_empty(options), patched, patcher.get_model_object(_SAMPLING),
    )  # fmt: skip


def clip_content(clip: Any) -> str:
    """Hash everything of a CLIP that its encoding of a text depends on, files of embeddings apart.

    Args:
        clip: CLIP socket.

    Raises:
        Unidentified: Another node changed it by functions.
    """
    _refuse_functions(clip.patcher)
    _refuse_replaced("CLIP", clip)
    return digest(
        type(clip.cond_stage_model).__name__, type(clip.tokenizer).__name__,
        weights_identity(clip.cond_stage_model, unpatched(clip.patcher)), clip.patcher.patches, clip.layer_idx,
        _attributes(clip.cond_stage_model), _tokenizer(clip.tokenizer),
        getattr(clip, "tokenizer_options", {}), _without_empty(clip.patcher.model_options),
        getattr(clip, "apply_hooks_to_conds", None), bool(getattr(clip, "use_clip_schedule", False)),
    )  # fmt: skip


def _refuse_functions(patcher: Any) -> None:
    """Refuse what runs code of another node: patches, hooks, and methods replaced on an object."""
    for name in _HANGERS:
        hung = getattr(patcher, name, None)
        if name == "wrappers" and hung:
            hung = {kind: {key: ran for key, ran in by.items() if key != _COMPILED} for kind, by in hung.items()}
        if _without_empty(hung):
            raise Unidentified(name)
    _refuse_replaced("the patcher", patcher)
    # What another clone has put on the model is taken off when this one is loaded.
    others = set(patcher.object_patches_backup) - set(patcher.object_patches)
    for name, module in patcher.model.named_modules():
        passing = {attribute for path, _, attribute in (path.rpartition(".") for path in others) if path == name}
        _refuse_replaced(name or "the model", module, passing)
        if any(vars(module).get(hooks) for hooks in _HOOKS):
            raise Unidentified(f"a hook of {name}")


def _refuse_replaced(name: str, holder: object, passing: Collection[str] = ()) -> None:
    """Refuse an object with a function under the name of a method. A method replaced in the class is not seen.

    Args:
        name: What it is called.
        holder: The object.
        passing: Attributes that may be anything.

    Raises:
        Unidentified: It has such a function.
    """
    for own, value in vars(holder).items():
        if own not in passing and callable(value) and not isinstance(value, type) and hasattr(type(holder), own):
            method = getattr(type(holder), own)
            # A node that puts a method back leaves it on the object.
            if getattr(value, "__self__", None) is not holder or getattr(value, "__func__", None) is not method:
                raise Unidentified(f"{own} of {name}")


def _attributes(module: nn.Module) -> dict[str, dict[str, Any]]:
    """The settings of a module and all modules in it, such as the number of heads, by their paths."""
    return {name: own for name, part in module.named_modules() if (own := _attributes_of(part))}


def _attributes_of(holder: object) -> dict[str, Any]:
    """The attributes of an object that are plain values."""
    own = {name: value for name, value in vars(holder).items() if value is not None and _is_setting(value)}
    passing = [name for name in own if name in _PASSING or name.startswith("_") or "comfy" in name]
    return {name: value for name, value in own.items() if name not in passing}


def _is_setting(value: object) -> bool:
    if isinstance(value, (list, tuple, dict)):
        items = value.values() if isinstance(value, dict) else value
        return len(value) <= _MOST and all(_is_setting(item) for item in items)
    return value is None or isinstance(value, (bool, int, float, str))


def _tokenizer(holder: Any) -> dict[str, Any]:
    """The attributes of a tokenizer and of those that it consists of. What other libraries make is not looked into.

    Raises:
        Unidentified: A method of it was replaced.
    """
    _refuse_replaced("the tokenizer", holder)
    found = _attributes_of(holder)
    for name, part in vars(holder).items():
        if _is_of_the_host(type(part).__module__) and hasattr(part, "__dict__"):
            found[name] = _tokenizer(part)
        elif hasattr(part, "__dict__") and not isinstance(part, type):
            _refuse_replaced(f"the tokenizer's {name}", part)
    return found


def _without_empty(value: Any) -> Any:
    """A value without what is empty in its dicts and lists."""
    if isinstance(value, Mapping):
        kept = {name: _without_empty(item) for name, item in value.items()}
        return {name: item for name, item in kept.items() if item not in ({}, [], None)} if kept else {}
    return value


def _parts(value: object) -> Iterator[bytes]:
    """A value as bytes, so that two values of the same bytes are the same."""
    yield type(value).__name__.encode()
    if value is None or isinstance(value, (bool, int, float, str, bytes, torch.dtype, enum.Enum)):
        yield repr(value).encode()
    elif isinstance(value, Tensor):
        yield f"{tuple(value.shape)} {value.dtype}".encode()
        yield sampled(value)
    elif isinstance(value, (list, tuple)):
        yield str(len(value)).encode()
        for item in value:
            yield from _parts(item)
    elif isinstance(value, (set, frozenset)):
        yield from _parts(sorted(value, key=repr))
    elif isinstance(value, Mapping):
        yield str(len(value)).encode()
        for name in sorted(value, key=repr):
            yield from _parts((name, value[name]))
    elif isinstance(value, WeightAdapterBase):
        yield from _parts(value.weights)
    elif isinstance(value, nn.Module):
        yield from _parts(_of_module(value))
    elif isinstance(value, FunctionType) and _is_plain(value):
        yield from _parts((value.__module__, value.__qualname__, value.__code__.co_code))
    else:
        raise Unidentified(f"{type(value).__module__}.{type(value).__qualname__}")


def _of_module(module: nn.Module) -> dict[str, Any]:
    """A module of the host as plain values: its classes, its tensors and its attributes."""
    classes = type(module).__mro__
    for one in classes:
        if not _is_of_the_host(one.__module__):
            raise Unidentified(f"{one.__module__}.{one.__qualname__}")
    inner = {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training"}
    own = {name: value for name, value in vars(module).items() if name not in inner}
    return {
        "classes": [one.__qualname__ for one in classes],
        "tensors": dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False)),
        "modules": dict(module.named_children()),
        "own": _without_empty(own),
    }


def _is_plain(function: FunctionType) -> bool:
    """Whether a function of the host does the same whenever it is called."""
    return _is_of_the_host(function.__module__) and not (function.__closure__ or function.__defaults__)


def _is_of_the_host(module: str) -> bool:
    # The host loads the files of comfy_extras under names that are paths.
    return module.split(".")[0] in ("comfy", "torch", "builtins", "typing", "abc") or "comfy_extras" in module
