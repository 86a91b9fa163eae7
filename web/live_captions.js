// Completes Live Captions in workflows saved before wildcards and one drawn line were two switches: what was one value is
// now both. ComfyUI stores values by position, so a value of our own at that place is a boolean and anything else is none.

import { app } from "../../scripts/app.js"

const NODE = "LoRAWorkbench_LiveCaptions"
const OLD = "wildcards"
const NEW = "draw_one_line"

app.registerExtension({
  name: "lora_workbench.live_captions",

  nodeCreated(node) {
    if (node.comfyClass !== NODE) return
    const { onConfigure } = node
    node.onConfigure = function (saved) {
      onConfigure?.apply(this, arguments)
      const at = (name) => this.widgets.findIndex((widget) => widget.name === name)
      const values = saved.widgets_values
      if (!values || typeof values[at(NEW)] === "boolean" || typeof values[NEW] === "boolean") return
      this.widgets[at(NEW)].value = this.widgets[at(OLD)].value
    }
  },
})
