"""Converts a workflow saved by the browser to a prompt for the server. Standard library only.

ComfyUI's front end does this in the browser (`app.graphToPrompt()`). This handles the plain graphs in
`example_workflows/`: no subgraphs, group nodes, reroutes or primitive nodes.
"""

from __future__ import annotations

from typing import Any

# Exist only in the browser; the server does not know them.
NOTES = {"Note", "MarkdownNote"}
# Node modes of LiteGraph.
NEVER, BYPASS = 2, 4
# Input types that are widgets by default; others are sockets.
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
# Switches that were split off another one, by node. Older workflows lack their value (see web/live_captions.js).
SPLIT_OFF = {"LoRAWorkbench_LiveCaptions": {"draw_one_line": "wildcards"}}
_NO_VALUE = object()


class WorkflowError(ValueError):
    """A workflow does not fit the nodes of the server."""


def to_prompt(workflow: dict[str, Any], object_info: dict[str, Any]) -> dict[str, Any]:
    """Convert a workflow to API format.

    Args:
        workflow: As the front end saves it, version 0.4.
        object_info: The server's answer to `/object_info`.

    Returns:
        Node id → {"class_type": ..., "inputs": ..., "_meta": ...}, without notes, muted and bypassed nodes.

    Raises:
        WorkflowError: The server lacks a node's type, or the number of saved values differs from the node's widgets,
            for example because the node changed. Optional ones may be missing at the end: a newer version added them.
    """
    nodes = {node["id"]: node for node in workflow["nodes"]}
    links = {link[0]: (link[1], link[2]) for link in workflow["links"]}
    prompt = {}
    for number, node in nodes.items():
        if node["type"] in NOTES or node.get("mode", 0) in (NEVER, BYPASS):
            continue
        if node["type"] not in object_info:
            raise WorkflowError(f"This ComfyUI has no node {node['type']!r} (node {number}). Update ComfyUI.")
        info = object_info[node["type"]]
        inputs = _widget_values(node, info)
        for socket in node.get("inputs", []):
            source = _source(socket.get("link"), links, nodes)
            if source is not None:
                inputs[socket["name"]] = source
        title = node.get("title") or info["display_name"]
        prompt[str(number)] = {"class_type": node["type"], "inputs": inputs, "_meta": {"title": title}}
    return prompt


def find(prompt: dict[str, Any], class_type: str, title: str | None = None) -> str:
    """Return the id of the first node of a type, with a title if given.

    Raises:
        WorkflowError: There is no such node.
    """
    for number, node in prompt.items():
        if node["class_type"] == class_type and title in (None, node["_meta"]["title"]):
            return number
    raise WorkflowError(f"The workflow has no node {class_type!r}" + (f" titled {title!r}." if title else "."))


def _source(link: int | None, links: dict[int, tuple[int, int]], nodes: dict[int, Any]) -> list[Any] | None:
    """The source of a link as [node id, output number]; None if no running node is there.

    A bypassed node passes on its input of the same type: the one in the place of the output, else the first.
    """
    if link is None:
        return None
    number, slot = links[link]
    node = nodes[number]
    mode = node.get("mode", 0)
    if mode == NEVER:
        return None
    if mode != BYPASS:
        return [str(number), slot]
    inputs, wanted = node.get("inputs", []), node["outputs"][slot]["type"]
    passed = [socket for socket in [*inputs[slot : slot + 1], *inputs] if socket["type"] == wanted]
    return _source(passed[0].get("link"), links, nodes) if passed else None


def _widget_values(node: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
    """Name each saved value after its input.

    Values are saved in the order of the node's widgets: required inputs, then optional ones. After a seed comes the
    browser's own "control after generate".
    """
    saved = node.get("widgets_values") or []
    if isinstance(saved, dict):  # some packs save them by name
        return dict(saved)
    named: dict[str, Any] = {}
    values = iter(saved)
    split_off = SPLIT_OFF.get(node["type"], {})
    for name, kind, options in _inputs(info):
        if not _is_widget(kind, options):
            continue
        is_optional = name in info["input"].get("optional", {}) and "default" in options
        named[name] = next(values, _NO_VALUE)
        if name in split_off and not isinstance(named[name], bool):
            named[name] = named[split_off[name]]
        elif named[name] is _NO_VALUE and is_optional:
            named[name] = options["default"]  # as the browser does
            continue
        control = next(values, _NO_VALUE) if _has_control(name, kind, options) else None
        if _NO_VALUE in (named[name], control):
            raise WorkflowError(
                f"{node['type']} (node {node['id']}) has only {len(saved)} saved values, none for {name!r}. "
                "Save the workflow again."
            )
        if isinstance(named[name], list):  # a plain list would be read as a link
            named[name] = {"__value__": named[name]}
    left = list(values)
    # Display-only widgets are saved too, as empty values.
    if any(value not in (None, "") for value in left):
        raise WorkflowError(
            f"{node['type']} (node {node['id']}) has {len(left)} saved values too many. Save the workflow again."
        )
    return named


def _inputs(info: dict[str, Any]) -> list[tuple[str, Any, dict[str, Any]]]:
    """All inputs of a node as (name, type, options), in the browser's order."""
    found = []
    for part in ("required", "optional"):
        specs = info["input"].get(part, {})
        for name in info.get("input_order", {}).get(part, specs):
            spec = specs[name]
            found.append((name, spec[0], spec[1] if len(spec) > 1 else {}))
    return found


def _is_widget(kind: Any, options: dict[str, Any]) -> bool:
    if options.get("forceInput"):
        return False
    # Older nodes have a combo's choices instead of a type.
    return isinstance(kind, list) or kind in WIDGETS or "widgetType" in options


def _has_control(name: str, kind: Any, options: dict[str, Any]) -> bool:
    """Whether the browser adds the widget "control after generate" after this one."""
    asked = options.get("control_after_generate")
    if kind == "INT":
        return bool(name in ("seed", "noise_seed") if asked is None else asked)
    return bool(asked) and (isinstance(kind, list) or kind == "COMBO")
