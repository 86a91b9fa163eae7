// Lists the past runs in Run Browser, each with its newest sample, in both of ComfyUI's renderers. A click chooses one.

import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"
import { button, make } from "./gallery/dom.js"

const NODE = "LoRAWorkbench_RunBrowser"
const EVENT = "lora_workbench.run"
const SIZE = [380, 420]
const LEAST_HEIGHT = 220

const STYLE = `
.lwb-runs { width: 100%; height: 100%; box-sizing: border-box; contain: layout size; overflow-y: auto; padding: 6px;
  overscroll-behavior: contain; border-radius: 6px; font: 12px/1.4 system-ui, sans-serif; color: var(--fg-color, #ddd);
  background: var(--comfy-input-bg, #222); text-align: left; user-select: text }
/* The Vue renderer gives a widget its least height, the canvas all the room of the node. */
[data-node-id] .lwb-runs { min-height: ${LEAST_HEIGHT}px }
.lwb-runs button { font: inherit; color: inherit; background: none; border: 1px solid var(--border-color, #444);
  border-radius: 6px; cursor: pointer }
.lwb-runs-refresh { padding: 2px 8px; margin-bottom: 6px }
.lwb-runs .lwb-run { display: flex; gap: 8px; align-items: center; width: 100%; padding: 4px; margin-bottom: 4px;
  text-align: left; border-color: transparent }
.lwb-run:hover, .lwb-run:focus-visible { background: var(--border-color, #444) }
.lwb-runs .lwb-run[aria-pressed=true] { border-color: #7ac4ff }
.lwb-run img, .lwb-run-empty { width: 48px; height: 48px; flex: none; object-fit: cover; border-radius: 4px;
  background: var(--border-color, #444) }
.lwb-run-words { min-width: 0; overflow-wrap: anywhere }
.lwb-run-words b { display: block; font-weight: 600 }
.lwb-run-words span { opacity: .8 }
`

const folderName = (run) => (run.folder ?? run.name).split("/").pop()

function thumbnail(run) {
  if (!run.thumbnail) return make("div", { class: "lwb-run-empty" })
  const at = run.thumbnail.lastIndexOf("/")
  const query = new URLSearchParams({
    filename: run.thumbnail.slice(at + 1),
    subfolder: `${run.folder}/${run.thumbnail.slice(0, at)}`,
    type: "output",
    preview: "webp;75",
  })
  const empty = make("div", { class: "lwb-run-empty" })
  const picture = make("img", { alt: "", loading: "lazy", src: api.apiURL(`/view?${query}`) })
  picture.addEventListener("error", () => picture.replaceWith(empty))
  return picture
}

function words(run) {
  const facts = [
    run.started_at && new Date(run.started_at * 1000).toLocaleString([], { dateStyle: "medium", timeStyle: "short" }),
    run.steps != null && `${run.steps} step${run.steps === 1 ? "" : "s"}`,
    run.loss != null && `loss ${run.loss.toFixed(4)}`,
    run.state,
  ]
  return make(
    "div",
    { class: "lwb-run-words" },
    make("b", { textContent: folderName(run) }),
    make("span", { textContent: facts.filter(Boolean).join(" · ") }),
  )
}

// Chooses runs of one node.
class Runs {
  constructor(widget) {
    this.widget = widget
    this.list = make("div")
    this.refresh = () => this.#refresh().catch((error) => this.#say(`The runs cannot be read: ${error.message}`))
    this.root = make(
      "div",
      { class: "lwb-runs", data: { captureWheel: "true" } }, // makes the Vue renderer leave the wheel to this list
      make("style", { textContent: STYLE }),
      Object.assign(button("Refresh", "Read the list of runs again", this.refresh), { className: "lwb-runs-refresh" }),
      this.list,
    )
    for (const kind of ["wheel", "pointerdown", "dblclick", "contextmenu", "copy"])
      this.root.addEventListener(kind, (event) => event.stopPropagation())
  }

  mark() {
    for (const row of this.list.querySelectorAll(".lwb-run"))
      row.setAttribute("aria-pressed", row.dataset.run === this.widget.value)
  }

  #choose(name) {
    this.widget.value = name
    this.widget.callback?.(name)
    this.mark()
  }

  #say(text) {
    this.list.replaceChildren(text)
  }

  async #refresh() {
    const answer = await api.fetchApi("/lora_workbench/runs")
    if (!answer.ok) throw new Error(`${answer.status}`)
    const runs = await answer.json()
    this.widget.options.values = runs.map(folderName) // the drop-down list, from when the page was loaded
    if (!runs.length) return this.#say("No runs yet. Queue a graph with LoRA Trainer.")
    this.list.replaceChildren(
      ...runs.map((run) => {
        const row = button("", "", () => this.#choose(folderName(run)))
        row.className = "lwb-run"
        row.dataset.run = folderName(run)
        row.append(thumbnail(run), words(run))
        return row
      }),
    )
    this.mark()
  }
}

app.registerExtension({
  name: "lora_workbench.run_browser",

  nodeCreated(node) {
    if (node.comfyClass !== NODE) return
    const choice = node.widgets.find((widget) => widget.name === "run")
    const runs = new Runs(choice)
    const widget = node.addDOMWidget("runs", "lora_workbench_runs", runs.root, {
      serialize: false,
      getMinHeight: () => LEAST_HEIGHT,
    })
    widget.serialize = false
    node.setSize([Math.max(node.size[0], SIZE[0]), Math.max(node.size[1], SIZE[1])])

    const after = (target, name, act) => {
      const before = target[name]
      target[name] = function () {
        const result = before?.apply(this, arguments)
        act()
        return result
      }
    }
    after(choice, "callback", () => runs.mark())
    after(node, "onConfigure", () => runs.mark())
    const ended = ({ detail }) => detail.lines?.some((line) => line.kind === "end") && runs.refresh()
    api.addEventListener(EVENT, ended)
    after(node, "onRemoved", () => api.removeEventListener(EVENT, ended))
    runs.refresh()
  },
})
