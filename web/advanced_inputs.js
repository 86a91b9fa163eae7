// Hides the advanced inputs of this pack's nodes behind a button, in ComfyUI's canvas renderer.
//
// ComfyUI sets `widget.options.advanced`, for which its Vue renderer shows a button of its own. Its canvas renderer reads
// `widget.advanced`, which nothing sets, and leaves room for the widgets it hides.

import { app } from "../../scripts/app.js"

const PREFIX = "LoRAWorkbench_"
const WIDGET_GAP = 4 // pixels that LiteGraph leaves below each widget

function hide(node, widget) {
  widget.advanced = true
  widget.computeSize = (width) =>
    node.isWidgetVisible(widget) ? [width, LiteGraph.NODE_WIDGET_HEIGHT] : [0, -WIDGET_GAP]
}

function fitHeight(node) {
  node.setSize([node.size[0], node.computeSize()[1]])
}

function addButton(node) {
  const button = node.addWidget("button", "advanced_inputs", null, () => node.toggleAdvanced(), {
    canvasOnly: true,
    serialize: false,
  })
  button.serialize = false
  Object.defineProperty(button, "label", {
    get: () => (node.showAdvanced ? "Hide advanced inputs" : "Show advanced inputs"),
    set: () => {},
    configurable: true,
  })
}

app.registerExtension({
  name: "lora_workbench.advanced_inputs",

  nodeCreated(node) {
    if (!node.comfyClass?.startsWith(PREFIX)) return
    const advanced = (node.widgets ?? []).filter((widget) => widget.options?.advanced)
    if (!advanced.length) return
    for (const widget of advanced) hide(node, widget)
    addButton(node)
    const toggle = node.toggleAdvanced
    node.toggleAdvanced = function () {
      toggle.call(this)
      fitHeight(this)
    }
    fitHeight(node)
  },
})
