// Lists the findings of Dataset Report in its node, the worst first, in both of ComfyUI's renderers.

import { app } from "../../scripts/app.js"

const NODE = "LoRAWorkbench_DatasetReport"
const REPORT = "lora_workbench_report" // key in the node's output, with one entry per finding
const SIZE = [440, 560]
const LEAST_HEIGHT = 160
// By severity. The colours are those of the sheet, in training/review/palette.py.
const COLORS = ["#f06e68", "#ffbe5c", "#7ac4ff"]
const MEANS = ["spoils the training", "weakens it", "worth knowing"]

const STYLE = `
.lwb-report { width: 100%; height: 100%; min-height: 150px; box-sizing: border-box; contain: layout size; overflow-y: auto; padding: 6px;
  overscroll-behavior: contain; border-radius: 6px; font: 12px/1.4 system-ui, sans-serif; color: var(--fg-color, #ddd);
  background: var(--comfy-input-bg, #222); text-align: left; user-select: text }
.lwb-report details, .lwb-report p { margin: 0 0 8px; padding-left: 10px; border-left: 3px solid var(--kind) }
.lwb-report summary { cursor: pointer; list-style: none }
.lwb-report b { font-weight: 600 }
.lwb-report ul { margin: 4px 0 0; padding-left: 16px; opacity: .8; overflow-wrap: anywhere }
`

function finding({ severity, what, advice, files }) {
  const head = document.createElement(files.length ? "summary" : "span")
  const said = document.createElement("b")
  said.textContent = what
  head.append(said, ` ${advice}`, files.length ? ` (${files.length} ▸)` : "")
  const box = document.createElement(files.length ? "details" : "p")
  box.title = MEANS[severity]
  box.style.setProperty("--kind", COLORS[severity])
  box.append(head)
  if (files.length) {
    const list = document.createElement("ul")
    for (const name of files) list.append(Object.assign(document.createElement("li"), { textContent: name }))
    box.append(list)
  }
  return box
}

app.registerExtension({
  name: "lora_workbench.dataset_report",

  nodeCreated(node) {
    if (node.comfyClass !== NODE) return
    const root = document.createElement("div")
    const style = Object.assign(document.createElement("style"), { textContent: STYLE })
    root.className = "lwb-report"
    root.dataset.captureWheel = "true" // makes the Vue renderer leave the wheel to this list
    root.append(style, "Queue the graph to examine the dataset.")
    for (const kind of ["wheel", "pointerdown", "dblclick", "contextmenu", "copy"])
      root.addEventListener(kind, (event) => event.stopPropagation())
    const widget = node.addDOMWidget("findings", "lora_workbench_report", root, {
      serialize: false,
      getMinHeight: () => LEAST_HEIGHT,
    })
    widget.serialize = false
    node.setSize([Math.max(node.size[0], SIZE[0]), Math.max(node.size[1], SIZE[1])])

    const { onExecuted } = node
    node.onExecuted = function (output) {
      onExecuted?.apply(this, arguments)
      const found = output?.[REPORT]
      if (!found) return
      root.replaceChildren(style, ...(found.length ? found.map(finding) : ["No problems found."]))
    }
  },
})
