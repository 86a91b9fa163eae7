// Opens this pack's templates where their first nodes can be read.
//
// Newer front ends fit a whole template into the window, which makes a wide one too small to read. They restore the view
// that is saved in any other workflow.

import { app } from "../../scripts/app.js"

const MARK = "lora_workbench_template" // in `extra` of a template; a workflow saved from it has none

app.registerExtension({
  name: "lora_workbench.template_view",

  afterConfigureGraph() {
    const { extra } = app.graph
    if (!extra?.[MARK]) return
    delete extra[MARK]
    if (!extra.ds || !app.extensionManager.setting.get("Comfy.EnableWorkflowViewRestore")) return
    app.canvas.ds.scale = extra.ds.scale
    app.canvas.ds.offset = [...extra.ds.offset]
    app.canvas.setDirty(true, true)
  },
})
