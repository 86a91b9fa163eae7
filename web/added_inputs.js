// Completes nodes in workflows saved before an input existed. ComfyUI stores values by position. Older versions saved the
// text that a node showed behind them, which would now be the value of the first new input.

import { app } from "../../scripts/app.js"

const ADDED = {
  LoRAWorkbench_BucketImages: ["random_crop", "color_aug", "variants"],
  LoRAWorkbench_LiveCaptions: ["drop_every_epochs"],
  LoRAWorkbench_LoadDataset: ["caption_extension"],
}

// An ending of files has no spaces; a text has.
const fits = (value, standard) => typeof value === typeof standard && !/\s/.test(String(value).trim())

app.registerExtension({
  name: "lora_workbench.added_inputs",

  nodeCreated(node) {
    const added = ADDED[node.comfyClass]
    if (!added) return
    const defaults = new Map(node.widgets.map((widget) => [widget.name, widget.value]))
    const { onConfigure } = node
    node.onConfigure = function (saved) {
      onConfigure?.apply(this, arguments)
      for (const name of added) {
        const at = this.widgets.findIndex((widget) => widget.name === name)
        const values = saved.widgets_values
        const value = values?.[Array.isArray(values) ? at : name]
        if (value !== undefined && !fits(value, defaults.get(name))) this.widgets[at].value = defaults.get(name)
      }
    }
  },
})
