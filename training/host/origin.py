"""Finds the file that a MODEL was loaded from, by following the graph back from the node that uses it."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import folder_paths

# ComfyUI's folders of model files, and that of ComfyUI-GGUF.
_FOLDERS = ("checkpoints", "diffusion_models", "unet_gguf")
_HASHED = (0x100000, 0x10000)  # offset and length, in bytes


def model_file(graph: Any, node_id: str | None, socket: str = "model") -> Path | None:
    """Find the file behind a MODEL input.

    Nodes that take a MODEL, such as LoRA loaders, are passed through. The node where the path ends is the loader.

    Args:
        graph: The host's DynamicPrompt, which also holds nodes of expanded subgraphs; None outside a server.
        node_id: The node whose input it is.
        socket: Name of the input.

    Returns:
        The file; None if no file or more than one is found, for example with merged models.
    """
    if graph is None or node_id is None or not graph.has_node(node_id):
        return None
    link = graph.get_node(node_id)["inputs"].get(socket)
    files = set(_files_behind(graph, link, set())) if _is_link(link) else set()
    return files.pop() if len(files) == 1 else None


def short_hash(path: Path) -> str:
    """A model file's hash as kohya's trainer writes it into `ss_sd_model_hash`; empty if the file cannot be read.

    The first 8 digits of the SHA-256 of 64 KiB, an old form that Automatic1111 introduced. It takes no time.
    """
    offset, length = _HASHED
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return hashlib.sha256(file.read(length)).hexdigest()[:8]
    except OSError:
        return ""


def _files_behind(graph: Any, link: Any, seen: set[str]) -> Iterator[Path]:
    node_id = link[0]
    if node_id in seen or not graph.has_node(node_id):
        return
    seen.add(node_id)
    inputs = graph.get_node(node_id)["inputs"]
    models = [value for value in inputs.values() if _is_link(value) and _may_be_a_model(graph, value)]
    for onward in models:
        yield from _files_behind(graph, onward, seen)
    if not models:
        for value in inputs.values():
            found = _known_file(value) if isinstance(value, str) else None
            if found:
                yield found


def _is_link(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)


def _may_be_a_model(graph: Any, link: Any) -> bool:
    """Whether a link carries a MODEL, or anything, as from a switch."""
    if not graph.has_node(link[0]):
        return False
    nodes: Any = importlib.import_module("nodes")  # ComfyUI's; a type checker would take it for the pack's own
    kind = nodes.NODE_CLASS_MAPPINGS.get(graph.get_node(link[0])["class_type"])
    types, place = getattr(kind, "RETURN_TYPES", ()), int(link[1])
    name = str(types[place]) if place < len(types) else ""
    return name in ("MODEL", "*") or name.startswith("COMFY_MATCHTYPE")


def _known_file(name: str) -> Path | None:
    for folder in _FOLDERS:
        try:
            path = folder_paths.get_full_path(folder, name)
        except ValueError:  # a path on another drive of Windows, which is no name of a file there
            continue
        if path:
            return Path(path)
    return None
