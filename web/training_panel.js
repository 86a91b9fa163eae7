// Shows a run in its LoRA Trainer while it trains and afterwards, in both of ComfyUI's renderers. A trainer inside a
// subgraph is shown on the subgraph's node too.

import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"
import { Feed } from "./panel/feed.js"
import { Panel } from "./panel/panel.js"
import { LEAST_HEIGHT, WIDTH } from "./panel/style.js"
import { OWN_ID, nameWorkflow, nodesOnPath, workflowId } from "./workflow.js"

const NODE = "LoRAWorkbench_LoRATrainer"
const RUN = "lora_workbench_run" // key in the node's output, with one entry
const WIDGET = "training"
const KEY = "lora_workbench_panel" // key in a node's properties

export const panels = new WeakMap() // by node
export const feed = new Feed((path, options) => api.fetchApi(path, options), workflowId, show)

function panelOf(node) {
  if (panels.has(node)) return panels.get(node)
  const panel = new Panel(feed, api, {
    get: () => node.properties?.[KEY] ?? {},
    set: (values) => node.setProperty(KEY, values),
  })
  panels.set(node, panel)
  const widget = node.addDOMWidget(WIDGET, "lora_workbench_training", panel.root, {
    serialize: false,
    getMinHeight: () => LEAST_HEIGHT,
  })
  widget.serialize = false
  node.setSize([Math.max(node.size[0], WIDTH), Math.max(node.size[1], node.computeSize()[1])])
  const { onRemoved, onSerialize } = node
  // Older front ends list a subgraph's own widgets among those that it shows of its nodes.
  node.onSerialize = function (saved) {
    onSerialize?.apply(this, arguments)
    const listed = saved.properties?.proxyWidgets
    if (Array.isArray(listed)) saved.properties.proxyWidgets = listed.filter(([id, name]) => id !== "-1" || name !== WIDGET)
  }
  node.onRemoved = function () {
    panel.end()
    panels.delete(node)
    onRemoved?.apply(this, arguments)
  }
  return panel
}

function show(path, run) {
  const nodes = nodesOnPath(path)
  if (nodes.at(-1)?.comfyClass === NODE) for (const node of nodes) panelOf(node).show(run)
}

// The runs that the nodes of this workflow handed on last: also one of another workflow, which ComfyUI had in its cache.
async function showHandedOn() {
  const id = workflowId()
  const answer = id && (await api.fetchApi(`/lora_workbench/shown/${encodeURIComponent(id)}`))
  if (!answer?.ok || id !== workflowId()) return
  for (const [path, { kind, output }] of Object.entries(await answer.json()))
    if (kind === NODE && output[RUN]?.length) await feed.handedOn(path, output[RUN][0].id, true)
}

const warn = (error) => console.warn("LoRA Workbench: the runs of this workflow are not known.", error)

app.registerExtension({
  name: "lora_workbench.training_panel",

  setup() {
    api.addEventListener("lora_workbench.run", ({ detail }) => feed.take(detail))
    api.addEventListener("reconnected", () => feed.refresh().then(showHandedOn).catch(warn))
    api.addEventListener("execution_success", () => showHandedOn().catch(warn))
    api.addEventListener("executed", ({ detail }) => {
      const [{ id } = {}] = detail.output?.[RUN] ?? []
      // shown.js sends this message for the open workflow, ComfyUI for whichever has run.
      if (id) feed.handedOn(detail.node, id, detail.prompt_id === OWN_ID).catch(warn)
    })
  },

  nodeCreated(node) {
    if (node.comfyClass !== NODE) return
    nameWorkflow()
    panelOf(node)
  },

  afterConfigureGraph() {
    feed.restore().catch(warn)
  },
})
