// What the user can ask of a run under way. Discarding asks first, in the panel.

import { button, make } from "../gallery/dom.js"

const WISHES = [
  ["sample", "Sample now", "Makes samples after this step."],
  ["save", "Save now", "Saves a checkpoint after this step."],
  ["stop", "Stop and keep", "Ends the run after this step. The graph goes on with the LoRA as it is."],
]

const PENDING = {
  sample: "Makes samples after this step.", save: "Saves a checkpoint after this step.", stop: "Stops after this step.",
  discard: "Stops after this step and removes the folder.",
}
const REPORTED = ["finished", "stopped", "cancelled", "failed"]

export class Controls {
  // wish: (what) => Promise of what went wrong, or "". report: () => address of the run's report.
  constructor(wish, report) {
    this.wish = wish
    this.report = report
    this.said = make("div", { class: "lwb-said", hidden: true })
    this.pending = make("div", { class: "lwb-pending", hidden: true })
    this.pending.setAttribute("role", "status")
    this.buttons = Object.fromEntries(
      WISHES.map(([what, label, title]) => [what, button(label, title, () => this.#ask(what))]),
    )
    this.buttons.discard = button(
      "Stop and discard", "Ends the run and removes its folder.", () => this.#confirm(true),
    )
    this.link = make("a", { class: "lwb-last", target: "_blank", rel: "noopener", textContent: "Report", hidden: true })
    this.link.title = "Opens the report of this run in a new tab."
    this.plain = make("div", { class: "lwb-row is-tight" }, ...Object.values(this.buttons), this.link)
    this.sure = button("Discard", "Removes the run's folder.", () => {
      this.#confirm(false)
      this.#ask("discard")
    })
    this.sure.className = "is-dangerous"
    this.question = make(
      "div", { class: "lwb-row is-tight", hidden: true }, "Stop this run and remove its folder?", this.sure,
      button("Go on training", "", () => this.#confirm(false)),
    )
    this.root = make("div", { class: "lwb-controls" }, this.said, this.pending, this.plain, this.question)
    this.show(null)
  }

  show(run) {
    const isRunning = Boolean(run?.isRunning)
    if (run?.id !== this.run?.id) {
      this.#say("")
      this.#confirm(false) // the question was about another run
    }
    this.run = run
    const pending = run?.pending ?? []
    this.pending.textContent = pending.map((what) => PENDING[what]).join(" ")
    this.pending.hidden = !pending.length
    for (const [what, made] of Object.entries(this.buttons)) made.disabled = !isRunning || pending.includes(what)
    if (run?.begin.samples === false) {
      this.buttons.sample.disabled = true
      this.buttons.sample.title = "Connect Sample Prompts to make samples."
    } else this.buttons.sample.title = WISHES[0][2]
    if (!isRunning) this.#confirm(false)
    this.link.hidden = !run?.folder || !run.last.step || !REPORTED.includes(run.state)
    if (!this.link.hidden) this.link.href = this.report()
  }

  #confirm(asks) {
    this.question.hidden = !asks
    this.plain.hidden = asks
  }

  async #ask(what) {
    this.#say("")
    const { run } = this
    const answer = this.wish(what)
    this.show(run)
    const wrong = await answer
    if (run !== this.run) return
    this.show(run)
    if (wrong) this.#say(wrong)
  }

  #say(text) {
    this.said.textContent = text
    this.said.hidden = !text
  }
}
