"""From a workflow as the browser saves it to a prompt as the server takes it. Standard library only.

ComfyUI's front end does this in the browser (`app.graphToPrompt()`). Here it is done for plain graphs, which is what
`example_workflows/` holds: no subgraphs, no group nodes, no reroutes, no primitive nodes of the browser.
"""

from __future__ import annotations

from typing import Any

# Live only in the browser; the server has never heard of them.
NOTES = {"Note", "MarkdownNote"}
# Node modes of LiteGraph.
NEVER, BYPASS = 2, 4
# Types of input that are a widget rather than a socket, unless the input says otherwise.
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}


class WorkflowError(ValueError):
    """A workflow does not fit the nodes of the server."""


def to_prompt(workflow: dict[str, Any], object_info: dict[str, Any]) -> dict[str, Any]:
    """Convert a workflow to API format.

    Args:
        workflow: As the front end saves it, version 0.4.
        object_info: What the server answers at `/object_info`.

    Returns:
        Node id → {"class_type": ..., "inputs": ..., "_meta": ...}, without notes, muted and bypassed nodes.

    Raises:
        WorkflowError: A node is of a type that the server does not have, or its saved values are not as many as its
            widgets, as after a change of the node.
    """
    nodes = {node["id"]: node for node in workflow["nodes"]}
    links = {link[0]: (link[1], link[2]) for link in workflow["links"]}
    prompt = {}
    for number, node in nodes.items():
        if node["type"] in NOTES or node.get("mode", 0) in (NEVER, BYPASS):
            continue
        if node["type"] not in object_info:
            raise WorkflowError(f"This ComfyUI has no node {node['type']!r} (node {number}).")
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
    """Return the id of the first node of one kind (and title).

    Raises:
        WorkflowError: There is none.
    """
    for number, node in prompt.items():
        if node["class_type"] == class_type and title in (None, node["_meta"]["title"]):
            return number
    raise WorkflowError(f"The workflow has no node {class_type!r}" + (f" titled {title!r}." if title else "."))


def _source(link: int | None, links: dict[int, tuple[int, int]], nodes: dict[int, Any]) -> list[Any] | None:
    """Where a link comes from, as [node id, output number]; None when nothing that runs is there.

    A bypassed node, which would hand its input on, counts as nothing: the examples have none.
    """
    if link is None:
        return None
    number, slot = links[link]
    if nodes[number].get("mode", 0) in (NEVER, BYPASS):
        return None
    return [str(number), slot]


def _widget_values(node: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
    """Give each saved value its input's name.

    Values are saved in the order of the node's widgets: required inputs, then optional ones. A seed is followed by
    what to do with it after a run, which is for the browser alone.
    """
    saved = node.get("widgets_values") or []
    if isinstance(saved, dict):  # some packs save them by name
        return dict(saved)
    named: dict[str, Any] = {}
    values = iter(saved)
    for name, kind, options in _inputs(info):
        if not _is_widget(kind, options):
            continue
        try:
            named[name] = next(values)
            if _has_control(name, kind, options):
                next(values)
        except StopIteration:
            raise WorkflowError(
                f"{node['type']} (node {node['id']}) has only {len(saved)} saved values: none for {name!r}."
            ) from None
        if isinstance(named[name], list):  # or the server would take it for a link
            named[name] = {"__value__": named[name]}
    left = list(values)
    # A widget that only shows something is saved too, as an empty value.
    if any(value not in (None, "") for value in left):
        raise WorkflowError(f"{node['type']} (node {node['id']}) has {len(left)} saved values too many.")
    return named


def _inputs(info: dict[str, Any]) -> list[tuple[str, Any, dict[str, Any]]]:
    """Every input of a node as (name, type, options), in the order in which the browser makes them."""
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
    # Older nodes give the choices of a combo in place of a type.
    return isinstance(kind, list) or kind in WIDGETS or "widgetType" in options


def _has_control(name: str, kind: Any, options: dict[str, Any]) -> bool:
    """Whether the browser puts the widget "control after generate" behind this one."""
    asked = options.get("control_after_generate")
    if kind == "INT":
        return bool(name in ("seed", "noise_seed") if asked is None else asked)
    return bool(asked) and (isinstance(kind, list) or kind == "COMBO")
