// The workflow that is open: its id and its nodes by the path under which they are queued.

import { app } from "../../scripts/app.js"

const NO_ID = "00000000-0000-0000-0000-000000000000"
export const OWN_ID = "lora_workbench" // key in a workflow's `extra`

export const root = () => app.rootGraph ?? app.graph

const isId = (id) => Boolean(id) && id !== NO_ID

// Empty for a workflow without one. A copy has the OWN_ID of its original, but an id of its own.
export function workflowId() {
  const graph = root()
  return String([graph?.id, graph?.extra?.[OWN_ID]].find(isId) ?? "")
}

function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16))
  bytes[6] = 0x40 | (bytes[6] & 0x0f) // version 4 (RFC 9562, 5.4)
  bytes[8] = 0x80 | (bytes[8] & 0x3f)
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("")
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join("-")
}

// The front end gives a graph that was cleared no id.
export function nameWorkflow() {
  const graph = root()
  if (graph && !isId(graph.id)) (graph.extra ??= {})[OWN_ID] ??= newId()
}

// Gives a workflow that is about to be opened an id. The front end would give it none, or another one at every load.
export function nameSaved(saved) {
  if (!isId(saved.id)) saved.id = saved.extra?.[OWN_ID] ?? newId()
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
