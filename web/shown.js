// Shows again what this pack's nodes showed, after the page was reloaded, a workflow was opened again, or ComfyUI took a
// node's result from its cache. The server keeps it: training/host/shown.py says why there.

import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"
import { OWN_ID, nameSaved, nameWorkflow, nodeByPath, workflowId } from "./workflow.js"

const PREFIX = "LoRAWorkbench_"
const TEXT = "lora_workbench_text" // key in a node's output
const TEXT_WIDGET = "$$node-text-preview" // the front end's
const texts = new WeakMap() // the text of each node that has one

// The front end shows a text where it shows those of running nodes, in both renderers. It looks in the open graph only.
function say(node) {
  if (!texts.has(node) || node.graph !== app.canvas.graph) return
  api.dispatchCustomEvent("progress_text", { nodeId: String(node.id), text: texts.get(node) })
}

// The front end would save the texts, which may hold paths of this machine, in the workflow's file.
function keepTextsOut() {
  for (const node of app.canvas.graph?.nodes ?? [])
    for (const widget of node.widgets ?? [])
      if (widget.name === TEXT_WIDGET && node.comfyClass?.startsWith(PREFIX)) widget.serialize = false
}

async function restore() {
  const id = workflowId()
  if (!id) return
  const answer = await api.fetchApi(`/lora_workbench/shown/${encodeURIComponent(id)}`)
  if (!answer.ok || id !== workflowId()) return
  for (const [path, { kind, output }] of Object.entries(await answer.json()))
    // The message that ComfyUI sends when a node has run. No prompt has this id, so nothing counts it as progress.
    if (nodeByPath(path)?.comfyClass === kind)
      api.dispatchCustomEvent("executed", { node: path, display_node: path, output, prompt_id: OWN_ID })
}

app.registerExtension({
  name: "lora_workbench.shown",

  setup() {
    // When the front end has made its widget.
    api.addEventListener("progress_text", () => queueMicrotask(keepTextsOut))
    app.canvas.canvas.addEventListener("litegraph:set-graph", ({ detail }) =>
      // When the front end has turned to that graph.
      setTimeout(() => detail.newGraph?.nodes.forEach(say)),
    )
  },

  beforeConfigureGraph(saved) {
    nameSaved(saved)
  },

  nodeCreated(node) {
    if (!node.comfyClass?.startsWith(PREFIX)) return
    nameWorkflow()
    const { onExecuted } = node
    node.onExecuted = function (output) {
      onExecuted?.apply(this, arguments)
      const text = output?.[TEXT] ?? output?.text
      if (!text?.length) return
      texts.set(node, text.join("\n"))
      say(node)
    }
  },

  afterConfigureGraph() {
    restore().catch((error) => console.warn("LoRA Workbench: what the nodes showed is not known.", error))
  },
})
