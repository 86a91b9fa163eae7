// Greys out the inputs of Loss Options that have no effect on their own, such as huber_c without Huber.
//
// They keep their values, and the trainer ignores them.

import { app } from "../../scripts/app.js"

const NODE = "LoRAWorkbench_LossOptions"
const HUBER = ["Huber", "smooth L1"]
// By input: whether it has an effect, from the values of the others.
const HAS_EFFECT = {
  gamma: (value) => ["min-SNR", "soft min-SNR"].includes(value("weighting")),
  p2_gamma: (value) => value("weighting") === "P2",
  huber_c: (value) => HUBER.includes(value("loss")),
  huber_schedule: (value) => HUBER.includes(value("loss")),
  noise_offset_adaptive: (value) => value("noise_offset") !== 0,
  noise_offset_random: (value) => value("noise_offset") !== 0,
  multires_discount: (value) => value("multires_iterations") > 0,
  ip_noise_random: (value) => value("ip_noise_gamma") > 0,
}

function update(node) {
  const find = (name) => node.widgets?.find((widget) => widget.name === name)
  // A value that comes from another node is not known here.
  const isLinked = (name) => node.inputs?.some((input) => input.widget?.name === name && input.link != null)
  const value = (name) => find(name)?.value
  for (const [name, hasEffect] of Object.entries(HAS_EFFECT)) {
    const widget = find(name)
    if (!widget) continue
    const known = !["weighting", "loss", "noise_offset", "multires_iterations", "ip_noise_gamma"].some(isLinked)
    widget.disabled = known && !hasEffect(value)
    widget.options.disabled = widget.disabled // read by Nodes 2.0
  }
  node.setDirtyCanvas?.(true, true)
}

app.registerExtension({
  name: "lora_workbench.loss_options",

  nodeCreated(node) {
    if (node.comfyClass !== NODE) return
    for (const widget of node.widgets ?? []) {
      const { callback } = widget
      widget.callback = function () {
        const result = callback?.apply(this, arguments)
        update(node)
        return result
      }
    }
    for (const event of ["onConfigure", "onConnectionsChange"]) {
      const before = node[event]
      node[event] = function () {
        const result = before?.apply(this, arguments)
        update(this)
        return result
      }
    }
    update(node)
  },
})
