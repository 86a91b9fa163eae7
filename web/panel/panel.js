// The panel of a trainer: what its run does, its chart, its samples and what can be asked of it.
//
// It draws when there is something new and it is seen, at most once in a frame of the page.

import { make } from "../gallery/dom.js"
import { Chart } from "./chart.js"
import { Controls } from "./controls.js"
import { clock, size, smoothed, speed } from "./data.js"
import { Samples } from "./samples.js"
import { STYLE } from "./style.js"

const IDLE = "Queue the graph to train."
const PREFERENCES = { log: false, clip: false, smoothing: 0.9, series: {} }
const STATES = {
  running: "training", finished: "finished", stopped: "stopped, LoRA kept", cancelled: "cancelled", failed: "failed",
  ended: "ended", "broken off": "broken off when ComfyUI ended",
}
const GONE = ["gone", "discarded"]

function addStyle() {
  if (document.getElementById("lwb-panel-style")) return
  const href = new URL("../vendor/uPlot/uPlot.min.css", import.meta.url).href
  document.head.append(
    make("link", { rel: "stylesheet", href }), make("style", { id: "lwb-panel-style", textContent: STYLE }),
  )
}

export class Panel {
  // feed: a Feed. api: ComfyUI's. preferences: {get, set} of the object in which the switches are remembered.
  constructor(feed, api, preferences) {
    addStyle()
    this.preferences = preferences
    this.run = null
    this.samples = new Samples((folder, file) => {
      const below = `${folder}/${file}`
      const at = below.lastIndexOf("/")
      const query = new URLSearchParams({ type: "output", subfolder: below.slice(0, at), filename: below.slice(at + 1) })
      return api.apiURL(`/view?${query}`)
    })
    this.controls = new Controls(
      (what) => feed.wish(this.run, what), () => api.apiURL(`/lora_workbench/runs/${this.run.id}/report`),
    )
    this.#makeParts()
    this.#watch()
    this.changed()
  }

  // Shows a run, or none.
  show(run) {
    if (run !== this.run && this.chart) this.chart.zoom = null
    this.run = run
    this.changed()
  }

  changed() {
    this.isDirty = true
    if (this.frame || !this.isSeen || document.hidden) return
    this.frame = requestAnimationFrame(() => {
      this.frame = null
      if (this.isSeen && !document.hidden) this.#draw()
    })
  }

  end() {
    cancelAnimationFrame(this.frame)
    for (const end of this.ends) end()
    this.chart.end()
  }

  #preference(name) {
    return this.preferences.get()[name] ?? PREFERENCES[name]
  }

  #prefer(name, value) {
    this.preferences.set({ ...this.preferences.get(), [name]: value })
    this.changed()
  }

  #makeParts() {
    this.name = make("b")
    this.state = make("span", { class: "lwb-state" })
    this.facts = make("div", { class: "lwb-row lwb-facts" })
    this.keys = make("div", { class: "lwb-row is-tight lwb-keys" })
    this.box = make("div", { class: "lwb-chart" })
    this.note = make("div", { class: "lwb-note" }, IDLE)
    this.hover = make("div", { class: "lwb-hover" })
    this.hints = make("div", { class: "lwb-hints", data: { captureWheel: "true" } })
    this.chart = new Chart(this.box, (text) => {
      if (this.hover.textContent !== text) this.hover.textContent = text
    })
    this.box.append(this.note)
    this.switches = make("div", { class: "lwb-row" }, ...this.#switches())
    this.whenRun = [this.facts, this.keys, this.hover, this.switches]
    this.root = make(
      "div", { class: "lwb-panel" },
      make("div", { class: "lwb-row lwb-head" }, this.name, this.state),
      this.facts, this.keys, this.box, this.hover, this.switches, this.hints, this.samples.root, this.controls.root,
    )
    for (const kind of ["pointerdown", "dblclick", "contextmenu", "copy"])
      this.root.addEventListener(kind, (event) => event.stopPropagation())
    for (const scrolls of [this.hints, this.samples.strip])
      scrolls.addEventListener("wheel", (event) => event.stopPropagation())
  }

  #switches() {
    const check = (name, label, title) => {
      const box = make("input", { type: "checkbox" })
      box.addEventListener("change", () => this.#prefer(name, box.checked))
      return [box, make("label", { title }, box, label)]
    }
    const [log, logLabel] = check("log", "log scale", "Draws the losses on a logarithmic scale.")
    const [clip, clipLabel] = check("clip", "clip outliers", "Fits the axis to the losses from 2 to 98 %.")
    const slider = make("input", { type: "range", min: 0, max: 0.99, step: 0.01 })
    slider.addEventListener("input", () => this.#prefer("smoothing", Number(slider.value)))
    this.setSwitches = () => {
      log.checked = this.#preference("log")
      clip.checked = this.#preference("clip")
      slider.value = this.#preference("smoothing")
    }
    return [logLabel, clipLabel, make("label", { title: "Smooths the curves." }, "smoothing", slider)]
  }

  #watch() {
    const seen = new IntersectionObserver(([...entries]) => {
      this.isSeen = entries.at(-1).isIntersecting
      if (this.isSeen && this.isDirty) this.changed()
    })
    seen.observe(this.root)
    const sized = new ResizeObserver(() => this.changed())
    sized.observe(this.box)
    // ComfyUI writes a palette's colours into the style of the page.
    const palette = new MutationObserver(() => this.#followPalette())
    palette.observe(document.documentElement, { attributeFilter: ["style", "class"] })
    palette.observe(document.body, { attributeFilter: ["style", "class"] })
    const turned = () => !document.hidden && this.isDirty && this.changed()
    document.addEventListener("visibilitychange", turned)
    this.ends = [
      () => seen.disconnect(), () => sized.disconnect(), () => palette.disconnect(),
      () => document.removeEventListener("visibilitychange", turned),
    ]
  }

  #followPalette() {
    const style = getComputedStyle(this.root)
    const palette = `${style.color} ${style.backgroundColor} ${style.getPropertyValue("--border-color")}`
    if (palette !== this.palette) this.changed()
    this.palette = palette
  }

  #draw() {
    this.isDirty = false
    const run = this.run && !GONE.includes(this.run.state) ? this.run : null
    this.name.textContent = run?.name ?? ""
    this.state.textContent = run ? this.#stateOf(run) : ""
    for (const part of this.whenRun) part.hidden = !run
    this.setSwitches()
    this.#drawNote(run)
    this.#drawHints(run)
    this.samples.show(run)
    this.controls.show(run)
    if (!run) return this.chart.clear()
    this.#drawFacts(run)
    this.chart.show(run, {
      log: this.#preference("log"), clip: this.#preference("clip"), smoothing: this.#preference("smoothing"),
      isOn: (series) => this.#isOn(series),
    })
    this.#drawKeys()
  }

  #isOn(series) {
    return this.#preference("series")[series.id] ?? series.on
  }

  #stateOf(run) {
    const state = STATES[run.state] ?? run.state
    return run.end ? `${state} after ${clock(run.end.seconds)}` : state
  }

  #drawNote(run) {
    this.note.hidden = Boolean(run?.curve.points.length)
    if (!run) this.note.textContent = this.run?.state === "discarded" ? `The run was discarded. ${IDLE}` : IDLE
    else if (run.isRunning) this.note.textContent = "Waiting for the first step."
    else if (run.state === "failed")
      this.note.textContent = "The training failed before its first step. ComfyUI shows why."
    else this.note.textContent = "No step was trained."
  }

  #drawHints(run) {
    const hints = run?.hints ?? []
    this.hints.hidden = !hints.length
    if (hints.length !== this.hints.childElementCount || hints.at(-1) !== this.hints.lastChild?.textContent)
      this.hints.replaceChildren(...hints.map((text) => make("p", {}, text)))
  }

  #drawFacts(run) {
    const { begin, last, memory } = run
    const columns = run.curve.columns()
    const loss = smoothed(columns.loss, this.#preference("smoothing"), columns.count).at(-1)
    const left = (begin.steps - last.step) * last.seconds_per_step
    const facts = [
      ["step", last.step && `${last.step} / ${begin.steps ?? "?"}`],
      ["epoch", last.epoch && `${last.epoch} / ${begin.epochs ?? "?"}`],
      ["loss", loss !== undefined && loss !== null && loss.toFixed(4)],
      ["speed", speed(last.seconds_per_step)],
      ["left", run.isRunning && left >= 0 && clock(left)],
      ["memory", memory.bytes && size(memory.bytes)],
      ["rung", memory.rung],
    ]
    const shown = facts.filter(([, value]) => value)
    this.facts.replaceChildren(...shown.map(([name, value]) => make("span", {}, make("i", {}, name), ` ${value}`)))
  }

  #drawKeys() {
    const { series } = this.chart
    const shape = JSON.stringify(series.map(({ id, label }) => [id, label]))
    if (shape !== this.keysShape)
      this.keys.replaceChildren(...series.map((one) => {
        const key = make("button", { type: "button", class: "lwb-key", title: `Shows or hides ${one.label}.` }, one.label)
        key.style.setProperty("--line", one.color)
        key.addEventListener("click", () => {
          this.#prefer("series", { ...this.#preference("series"), [one.id]: !this.#isOn(one) })
        })
        return key
      }))
    this.keysShape = shape
    series.forEach((one, at) => this.keys.children[at].setAttribute("aria-pressed", String(this.#isOn(one))))
  }
}
