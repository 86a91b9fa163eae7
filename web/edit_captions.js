// Shows the gallery in the node Edit Captions, in both of ComfyUI's renderers.

import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"
import { View } from "./gallery/view.js"

const NODE = "LoRAWorkbench_EditCaptions"
const KEY = "lora_workbench_gallery" // where the node's output and saved properties name the dataset shown
const SIZE = [920, 680]
const LEAST_HEIGHT = 420

app.registerExtension({
  name: "lora_workbench.edit_captions",

  nodeCreated(node) {
    if (node.comfyClass !== NODE) return
    const view = new View(api)
    const widget = node.addDOMWidget("gallery", "lora_workbench_gallery", view.root, {
      serialize: false,
      hideOnZoom: false,
      getMinHeight: () => LEAST_HEIGHT,
    })
    widget.serialize = false
    node.setSize([Math.max(node.size[0], SIZE[0]), Math.max(node.size[1], SIZE[1])])

    const { onExecuted, onConfigure, onRemoved } = node
    node.onExecuted = function (output) {
      onExecuted?.apply(this, arguments)
      const key = output?.[KEY]?.[0]
      if (!key) return
      node.properties[KEY] = key
      view.show(key)
    }
    // The server may still have the dataset after a reload of the page.
    node.onConfigure = function () {
      onConfigure?.apply(this, arguments)
      if (node.properties?.[KEY]) view.show(node.properties[KEY])
    }
    node.onRemoved = function () {
      view.end()
      onRemoved?.apply(this, arguments)
    }
  },
})
