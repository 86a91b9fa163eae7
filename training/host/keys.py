"""Names of trained layers, taken from the host's own maps from LoRA names to weights.

Nothing here knows an architecture by itself. A name is used only if the host would load it into the weight it was
trained on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import comfy.lora
import comfy.model_base
import comfy.utils
from torch import Tensor

from ..adapters.flat import DENOISER
from ..lora import DiffusersTarget, LayerNames

# Values of the host's maps: a weight's key, (key, (dim, start, length)) for a part of the weight, or
# (key, None, function) if diffusers stores the weight rearranged.
Place = Any

HOST_PREFIX, TEXT_PREFIX = "diffusion_model.", "text_encoders."


def layer_names(model: Any, module_paths: Iterable[str]) -> dict[str, LayerNames]:
    """Return the names of trained layers in the files of kohya, diffusers and ComfyUI.

    Args:
        model: The host's ModelPatcher.
        module_paths: Paths of layers inside `model.model`, each with a `weight`, such as
            `diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q`.

    Returns:
        The names of each layer, by its path. If the host knows no kohya name, the kohya field has the path, which the
        host loads for every model.
    """
    base = model.model
    key_map = _host_key_map(base)
    unet_names = _unet_names(base)
    to_diffusers = _diffusers_targets(base, key_map, unet_names)
    kohya_names = {}
    if _kohya_uses_diffusers_paths(base):
        kohya_names = {weight: name for name, weight in unet_names}

    found = {}
    for path in module_paths:
        weight = f"{path}.weight"
        kohya = "lora_unet_" + kohya_names.get(weight, path.removeprefix(HOST_PREFIX)).replace(".", "_")
        if key_map.get(kohya) != weight:
            kohya = path
        found[path] = LayerNames(path, kohya, to_diffusers.get(weight, ()))
    return found


def text_layer_names(encoders: Any, module_paths: Iterable[str]) -> dict[str, LayerNames]:
    """Return the names of trained layers of text encoders, as `layer_names` does for a model.

    kohya numbers the encoders of a model that has several. T5 is its third one, where the host knows two names.

    Args:
        encoders: The host's module of all encoders of a CLIP.
        module_paths: Paths of layers inside it, such as `clip_l.transformer.text_model.encoder.layers.0.mlp.fc1`.
    """
    by_weight: dict[str, list[str]] = {}
    for name, weight in comfy.lora.model_lora_keys_clip(encoders, {}).items():
        by_weight.setdefault(weight, []).append(name)
    is_alone = sum(hasattr(child, "encode_token_weights") for child in encoders.children()) == 1
    found = {}
    for path in module_paths:
        known = by_weight.get(f"{path}.weight", [])
        kohya = sorted(name for name in known if name.startswith("lora_te"))
        own = [name for name in kohya if name.startswith("lora_te_") == is_alone] or kohya
        diffusers = tuple(DiffusersTarget(name) for name in known if name.startswith("text_encoder"))
        diffusers = tuple(target for target in diffusers if not target.module.startswith(TEXT_PREFIX))
        found[path] = LayerNames(TEXT_PREFIX + path, own[-1] if own else TEXT_PREFIX + path, diffusers)
    return found


def trained_names(model: Any, encoders: Any, layers: Iterable[tuple[str, str]]) -> dict[str, LayerNames]:
    """Return the names of all trained layers by their paths.

    Args:
        model: The host's ModelPatcher.
        encoders: The host's module of the text encoders, or None.
        layers: (path, part of the LoRA) of each.
    """
    layers = list(layers)
    denoiser = [HOST_PREFIX + path for path, part in layers if part == DENOISER]
    found = {path.removeprefix(HOST_PREFIX): names for path, names in layer_names(model, denoiser).items()}
    text = [path for path, part in layers if part != DENOISER]
    return found | (text_layer_names(encoders, text) if text else {})


def restricted_key_map(
    model: Any, names: Mapping[str, LayerNames], encoders: Any = None
) -> dict[str, object]:
    """Reduce the host's map to the trained layers.

    Args:
        model: The host's ModelPatcher.
        names: The result of `layer_names` or `trained_names` for this model.
        encoders: The host's module of the text encoders, if any is trained.

    Returns:
        LoRA name → weight (or part of one), as `comfy.lora.load_lora` takes it. It has every name a trained layer can
        have in a file of this pack, except names that the host cannot load.
    """
    key_map = _host_key_map(model.model)
    if encoders is not None:
        key_map = comfy.lora.model_lora_keys_clip(encoders, key_map)
    kept: dict[str, object] = {}
    for layer in names.values():
        for name in (layer.kohya, layer.module, *(target.module for target in layer.diffusers)):
            if name in key_map:
                kept[name] = key_map[name]
    return kept


def read_back(tensors: Mapping[str, Tensor], key_map: Mapping[str, object]) -> tuple[int, list[str]]:
    """Load a LoRA with the host's own loader, without patching a model.

    Args:
        tensors: The tensors of a LoRA file.
        key_map: LoRA name → weight, from `restricted_key_map`.

    Returns:
        The number of weights the host would patch (each part of a fused weight counts), and the keys of `tensors` it
        would ignore.

    Raises:
        KeyError: The file has one matrix of a layer without the other.
    """
    patches = comfy.lora.load_lora(dict(tensors), dict(key_map), log_missing=False)
    # The host only logs what it ignores, but each adapter it makes knows its keys.
    used: set[str] = set()
    for patch in patches.values():
        used |= getattr(patch, "loaded_keys", set())
    return len(patches), sorted(key for key in tensors if key not in used)


def _host_key_map(base: Any) -> dict[str, Place]:
    # The host's default for the second argument is one dict shared by all calls.
    return comfy.lora.model_lora_keys_unet(base, {})


def _unet_names(base: Any) -> list[tuple[str, str]]:
    """Return pairs of (diffusers path, weight's key) of a UNet; none for other models.

    They are sorted, because the host builds them from sets. One weight has two names (`label_emb`); sorting puts
    SDXL's `add_embedding` before `class_embedding`.
    """
    paths = comfy.utils.unet_to_diffusers(base.model_config.unet_config)
    return sorted(
        (name.removesuffix(".weight"), HOST_PREFIX + weight)
        for name, weight in paths.items()
        if name.endswith(".weight")
    )


def _kohya_uses_diffusers_paths(base: Any) -> bool:
    """Return whether kohya's files name this UNet's layers as diffusers does.

    kohya's names are module paths. Its trainer uses diffusers' UNet class for SD1.x and SD2.x, but the original one for
    SDXL. SDXL and its relatives have a second, "added" conditioning (pooled text and sizes); SD1.x and SD2.x have none.
    """
    config = base.model_config.unet_config
    return config.get("adm_in_channels") is None and config.get("num_classes") is None


def _diffusers_targets(
    base: Any, key_map: Mapping[str, Place], unet_names: list[tuple[str, str]]
) -> dict[str, tuple[DiffusersTarget, ...]]:
    """Return the diffusers modules of each weight, by the weight's key."""
    whole: dict[str, DiffusersTarget] = {}
    parts: dict[str, list[DiffusersTarget]] = {}
    for name, place in _diffusers_names(base, key_map, unet_names):
        if isinstance(place, str):
            # The host lists a layer's original name before those added for later models.
            whole.setdefault(place, DiffusersTarget(name))
        elif len(place) == 2 and place[1][0] == 0:
            weight, (_, start, rows) = place
            parts.setdefault(weight, []).append(DiffusersTarget(name, start, rows))
        # else: diffusers stores the rows of this layer in another order, which LayerNames cannot express.

    for weight, targets in parts.items():
        out_features = _out_features(base, weight)
        if out_features is None:
            continue  # this variant of the model lacks the layer
        targets.sort(key=lambda target: target.start)
        if not _tiles(targets, out_features):
            # The host's names belong to another variant (Flux.1's for Flux.2, Z-Image's for Lumina 2). Its parts
            # do not fit, so its other names cannot be trusted either. One file uses one naming.
            return {}
    found = {weight: (target,) for weight, target in whole.items()}
    return found | {weight: tuple(targets) for weight, targets in parts.items()}


def _diffusers_names(
    base: Any, key_map: Mapping[str, Place], unet_names: list[tuple[str, str]]
) -> list[tuple[str, Place]]:
    """Return pairs of (component and diffusers path, place) in the host's order."""
    if unet_names:
        # Not from the key map: it names attention layers as diffusers' old attention processors did.
        return [(f"unet.{name}", weight) for name, weight in unet_names]
    if isinstance(base, comfy.model_base.Lumina2):
        # The key map of older hosts has these names only without the component.
        config = base.model_config.unet_config
        places = comfy.utils.z_image_to_diffusers(config, output_prefix=HOST_PREFIX)
        return [
            (f"transformer.{name.removesuffix('.weight')}", place)
            for name, place in places.items()
            if name.endswith(".weight")
        ]
    return [(name, place) for name, place in key_map.items() if name.startswith("transformer.")]


def _out_features(base: Any, weight: str) -> int | None:
    """Return the rows of a linear layer from its module, as a quantized weight may have another shape."""
    try:
        module = base.get_submodule(weight.removesuffix(".weight"))
    except AttributeError:
        return None
    return getattr(module, "out_features", None)


def _tiles(targets: list[DiffusersTarget], out_features: int) -> bool:
    """Return whether the parts, in order, cover every row exactly once."""
    end = 0
    for target in targets:
        if target.start != end or target.rows is None:
            return False
        end += target.rows
    return end == out_features
