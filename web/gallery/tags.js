// The tags of all captions, the most frequent first. Each can filter the pictures, be renamed or be removed.

import { button, counted, make } from "./dom.js"

const MOST = 300

export class Tags {
  // acts: { filter(tag), rename(tag, name), remove(tag) }.
  constructor(acts) {
    this.acts = acts
    this.found = []
    this.chosen = ""
    this.root = make("div", { class: "lwb-tags" })
  }

  // found: [["a hat", 12], …]; chosen: the tag that filters the pictures.
  show(found, chosen) {
    Object.assign(this, { found, chosen })
    if (!this.renaming) this.#draw() // keeps the input of a new name
  }

  #draw() {
    const { scrollTop } = this.root
    const rows = this.found.slice(0, MOST).map(([tag, count]) => this.#row(tag, count))
    const more = this.found.length - MOST
    if (more > 0) rows.push(make("div", { class: "lwb-note", textContent: `and ${counted(more, "rarer tag")}` }))
    this.root.replaceChildren(...rows)
    this.root.scrollTop = scrollTop
  }

  #row(tag, count) {
    const name = make("span", { textContent: tag, title: `Show only pictures with the tag ${tag}` })
    name.addEventListener("click", () => this.acts.filter(tag === this.chosen ? "" : tag))
    const rename = button("✎", "Rename this tag in all captions", () => this.#rename(name, tag))
    rename.className = "lwb-keeps" // the input of the new name takes the focus
    const remove = button("×", "Remove this tag from all captions", () => this.acts.remove(tag))
    const many = make("span", { class: "lwb-count", textContent: count })
    many.style.flex = "none"
    const row = make("div", { class: "lwb-tag", data: { tag } }, name, many, rename, remove)
    row.classList.toggle("is-chosen", tag === this.chosen)
    return row
  }

  #rename(name, tag) {
    const input = make("input", { value: tag })
    this.renaming = true
    const end = (save) => {
      input.onblur = null
      this.renaming = false
      this.#draw()
      const to = input.value.trim()
      if (save && to && to !== tag) this.acts.rename(tag, to)
    }
    input.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== "Escape") return
      event.preventDefault()
      event.stopPropagation()
      end(event.key === "Enter")
    })
    input.onblur = () => end(false)
    name.replaceWith(input)
    input.focus()
    input.select()
  }
}
