// Shows the estimate of Estimate Training in its node, in both of ComfyUI's renderers.

import { app } from "../../scripts/app.js"

const NODE = "LoRAWorkbench_EstimateTraining"
const ESTIMATE = "lora_workbench_estimate" // key in the node's output, with one entry
const WIDTH = 460
const LEAST_HEIGHT = 500

const STYLE = `
.lwb-estimate { width: 100%; height: 100%; box-sizing: border-box; contain: layout size; overflow-y: auto; padding: 6px 8px;
  overscroll-behavior: contain; border-radius: 6px; font: 12px/1.4 system-ui, sans-serif; color: var(--fg-color, #ddd);
  background: var(--comfy-input-bg, #222); text-align: left; user-select: text }
/* The Vue renderer gives a widget its least height, the canvas all the room of the node. */
[data-node-id] .lwb-estimate { min-height: ${LEAST_HEIGHT}px }
.lwb-estimate table { width: 100%; border-collapse: collapse; margin-bottom: 10px }
.lwb-estimate caption, .lwb-estimate th { font-weight: 600; text-align: left }
.lwb-estimate caption { padding: 2px 0 4px }
.lwb-estimate th, .lwb-estimate td { padding: 1px 10px 1px 0; vertical-align: top;
  border-top: 1px solid var(--border-color, #444) }
.lwb-estimate tr > :last-child { padding-right: 0 }
.lwb-estimate .is-number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums }
.lwb-estimate .is-too-small td { color: #f06e68 }
.lwb-estimate p { margin: 0 0 8px; padding-left: 10px; border-left: 3px solid #ffbe5c }
`

function make(tag, text, kind) {
  const made = document.createElement(tag)
  if (text) made.textContent = text
  if (kind) made.className = kind
  return made
}

function table(title, rows, heads = []) {
  const made = make("table")
  made.append(make("caption", title))
  if (heads.length) {
    const row = make("tr")
    row.append(...heads.map(([text, kind]) => make("th", text, kind)))
    made.append(row)
  }
  made.append(...rows)
  return made
}

function row(cells, kind) {
  const made = make("tr", "", kind)
  made.append(...cells.map(([text, kind]) => make("td", text, kind)))
  return made
}

function tables({ numbers, cards, notes }) {
  const number = "is-number"
  return [
    table("The run", numbers.map(([name, value]) => row([[name], [value, number]]))),
    table(
      "Memory",
      cards.map(({ name, peak, how, fits }) => row([[name], [peak, number], [how]], fits ? "" : "is-too-small")),
      [["card"], ["peak", number], ["how it fits"]],
    ),
    ...notes.map((note) => make("p", note)),
  ]
}

app.registerExtension({
  name: "lora_workbench.estimate_training",

  nodeCreated(node) {
    if (node.comfyClass !== NODE) return
    const root = make("div", "", "lwb-estimate")
    const style = make("style", STYLE)
    root.dataset.captureWheel = "true" // makes the Vue renderer leave the wheel to this list
    root.append(style, "Queue the graph to estimate the training.")
    for (const kind of ["wheel", "pointerdown", "dblclick", "contextmenu", "copy"])
      root.addEventListener(kind, (event) => event.stopPropagation())
    const widget = node.addDOMWidget("estimate", "lora_workbench_estimate", root, {
      serialize: false,
      getMinHeight: () => LEAST_HEIGHT,
    })
    widget.serialize = false
    node.setSize([Math.max(node.size[0], WIDTH), node.computeSize()[1]])

    const { onExecuted } = node
    node.onExecuted = function (output) {
      onExecuted?.apply(this, arguments)
      const [found] = output?.[ESTIMATE] ?? []
      if (found) root.replaceChildren(style, ...tables(found))
    }
  },
})
