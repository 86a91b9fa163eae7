// The workflow that is open: its id and its nodes by the path under which they are queued.

import { app } from "../../scripts/app.js"

const NO_ID = "00000000-0000-0000-0000-000000000000"
export const OWN_ID = "lora_workbench" // key in a workflow's `extra`

export const root = () => app.rootGraph ?? app.graph

// Empty for a workflow without one.
export function workflowId() {
  const graph = root()
  const id = graph?.extra?.[OWN_ID] || graph?.id
  return id && id !== NO_ID ? String(id) : ""
}

// The front end gives a graph that was cleared no id, and sometimes another one at every load.
export function nameWorkflow() {
  const graph = root()
  if (graph && (!graph.id || graph.id === NO_ID))
    (graph.extra ??= {})[OWN_ID] ??= `${Date.now().toString(36)}-${Math.random().toString(36).slice(2)}`
}

// The nodes on the way to a queued node, from the open workflow inwards: [7], or those of 3 and 3:7 for a node inside
// the subgraph of node 3. Empty if one of them is not there.
export function nodesOnPath(path) {
  const found = []
  let graph = root()
  for (const id of String(path).split(":")) {
    const node = graph?.getNodeById(Number(id)) ?? graph?.getNodeById(id)
    if (!node) return []
    found.push(node)
    graph = node.subgraph
  }
  return found
}

export const nodeByPath = (path) => nodesOnPath(path).at(-1)
