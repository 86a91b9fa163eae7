// The samples of a run: a strip of pictures, a slider over the steps at which they were made, and a large view.

import { make } from "../gallery/dom.js"

export class Samples {
  // address: (folder, file) => URL of a picture.
  constructor(address) {
    this.address = address
    this.step = null // the step chosen by the user; null follows the newest
    this.strip = make("div", { class: "lwb-strip", data: { captureWheel: "true" } })
    this.slider = make("input", { type: "range", min: 0, step: 1, title: "Step at which the samples were made" })
    this.label = make("output")
    this.root = make(
      "div", { class: "lwb-samples", hidden: true }, this.strip,
      make("div", { class: "lwb-row" }, "Samples", this.slider, this.label),
    )
    this.slider.addEventListener("input", () => {
      const { samples } = this.run
      const at = Number(this.slider.value)
      this.step = at === samples.length - 1 ? null : samples[at].step
      this.#draw()
    })
  }

  show(run) {
    if (run !== this.run) this.step = null
    this.run = run
    this.#draw()
  }

  get #at() {
    const found = this.run.samples.findIndex(({ step }) => step === this.step)
    return found >= 0 ? found : this.run.samples.length - 1
  }

  #draw() {
    const samples = this.run?.samples ?? []
    this.root.hidden = !samples.length
    if (!samples.length) return
    const at = this.#at
    this.slider.max = samples.length - 1
    this.slider.value = at
    this.slider.disabled = samples.length < 2
    this.label.value = `step ${samples[at].step}${this.step === null ? " (newest)" : ""}`
    const shown = JSON.stringify([this.run.id, this.run.folder, samples[at]])
    if (shown === this.shown) return
    this.shown = shown
    this.strip.replaceChildren(...samples[at].pictures.map((picture, number) => {
      const title = `${picture.prompt}\nseed ${picture.seed}, step ${samples[at].step}`
      const made = make("button", { type: "button", title }, this.#picture(picture))
      made.addEventListener("click", () => this.#openLarge(number))
      return made
    }))
  }

  #picture({ file, prompt }) {
    return make("img", { src: this.address(this.run.folder, file), alt: prompt, draggable: false })
  }

  // Left and right go through the steps, up and down through the prompts.
  #openLarge(number) {
    const { samples } = this.run
    let at = this.#at
    const image = make("img")
    const text = make("p")
    const root = make("div", { class: "lwb-large", tabIndex: -1 }, image, text)
    root.setAttribute("role", "dialog")
    root.setAttribute("aria-label", "Sample")
    const draw = () => {
      const { step, pictures } = samples[at]
      const picture = pictures[number]
      image.src = this.address(this.run.folder, picture.file)
      image.alt = picture.prompt
      text.textContent = `${picture.prompt} · seed ${picture.seed} · step ${step} · ${picture.width} × ${picture.height}`
    }
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }
    root.addEventListener("keydown", (event) => {
      event.stopPropagation()
      if (event.key === "Escape") root.remove()
      if (!move[event.key]) return
      event.preventDefault()
      const [steps, prompts] = move[event.key]
      const prompt = samples[at].pictures[number].number
      at = Math.max(0, Math.min(samples.length - 1, at + steps))
      // A sample that failed is missing: the same prompt can have another place.
      const { pictures } = samples[at]
      const same = pictures.findIndex((picture) => picture.number === prompt)
      number = Math.max(0, Math.min(pictures.length - 1, (same < 0 ? number : same) + prompts))
      draw()
    })
    root.addEventListener("click", (event) => event.target !== text && root.remove())
    draw()
    document.body.append(root)
    root.focus()
  }
}
