// Keeps small numbers whole in the number inputs of this pack's nodes, in both of ComfyUI's renderers.
//
// ComfyUI shows a number with the decimals of its step, and Nodes 2.0 writes back what it shows when an input is left.
// The Nodes 2.0 of older front ends shows three decimals and takes only digits, so that 2e-4 becomes 24.

import { app } from "../../scripts/app.js"

const PREFIX = "LoRAWorkbench_"
const MOST_DECIMALS = 10 // of any number; `round` in nodes/schema.py says the same
// Keys that the older Nodes 2.0 understands; it gets no other. They all read the whole text.
const COMMANDS = ["ArrowUp", "ArrowDown", "Enter", "NumpadEnter", "Tab"]

function decimals(value) {
  const [, fraction = "", exponent = 0] = /^-?\d+(?:\.(\d+))?(?:e([+-]\d+))?$/.exec(String(value)) ?? []
  return Math.min(Math.max(fraction.length - Number(exponent), 0), MOST_DECIMALS)
}

function keepWhole(widget) {
  const { options } = widget
  const least = options.precision ?? 0
  Object.defineProperty(options, "precision", {
    get: () => Math.max(least, decimals(widget.value)),
    enumerable: true,
    configurable: true,
  })
  // What follows goes to the number input of the older Nodes 2.0 as it is. Newer ones and the canvas ignore it.
  options.maxFractionDigits = MOST_DECIMALS
  options.onKeydownCapture = (event) => COMMANDS.includes(event.code) || event.stopPropagation()
  options.onKeypressCapture = options.onInputCapture = (event) => event.stopPropagation()
}

app.registerExtension({
  name: "lora_workbench.number_inputs",

  nodeCreated(node) {
    if (!node.comfyClass?.startsWith(PREFIX)) return
    const { required, optional } = node.constructor.nodeData?.input ?? {}
    for (const widget of node.widgets ?? [])
      if ({ ...required, ...optional }[widget.name]?.[0] === "FLOAT") keepWhole(widget)
  },
})
