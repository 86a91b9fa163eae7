// A grid of pictures that creates cards only for the visible rows, however many pictures there are.

import { make } from "./dom.js"
import { TOKEN_LIMIT, isLong } from "./store.js"
import { CARD } from "./style.js"

const ROWS_BEYOND = 2 // drawn above and below the visible rows
const ROW = CARD.height + CARD.gap

export class Grid {
  // acts: { thumbnail(picture) => address, choose(name), edit(name), toggle(name) }.
  constructor(acts) {
    this.acts = acts
    this.list = []
    this.chosen = ""
    this.said = ""
    this.space = make("div", { class: "lwb-space" })
    this.root = make("div", { class: "lwb-grid", tabIndex: 0, role: "listbox", ariaLabel: "Pictures" }, this.space)
    this.root.addEventListener("scroll", () => this.draw(), { passive: true })
    this.seen = new ResizeObserver(() => this.draw())
    this.seen.observe(this.root)
  }

  end() {
    this.seen.disconnect()
  }

  show(list, chosen) {
    this.list = list
    this.chosen = chosen
    this.said = list.length ? "" : "No picture matches the search and the filters."
    this.draw()
  }

  // Shows a text instead of pictures.
  note(text) {
    this.list = []
    this.said = text
    this.draw()
  }

  columns() {
    return Math.max(1, Math.floor((this.root.clientWidth - CARD.gap) / (CARD.width + CARD.gap)))
  }

  // The number of visible pictures.
  page() {
    return this.columns() * Math.max(1, Math.floor(this.root.clientHeight / ROW))
  }

  toTop() {
    this.root.scrollTop = 0
  }

  reveal(at) {
    const top = Math.floor(at / this.columns()) * ROW
    const below = top + ROW + CARD.gap - this.root.clientHeight
    this.root.scrollTop = Math.max(Math.min(this.root.scrollTop, top), below)
  }

  // Visible cards are reused, so that scrolling loads no picture twice.
  draw() {
    if (!this.list.length) {
      this.space.style.height = "100%"
      this.space.replaceChildren(make("div", { class: "lwb-note", textContent: this.said }))
      return
    }
    const columns = this.columns()
    this.space.style.height = `${Math.ceil(this.list.length / columns) * ROW + CARD.gap}px`
    const first = Math.max(0, Math.floor(this.root.scrollTop / ROW) - ROWS_BEYOND)
    const last = Math.ceil((this.root.scrollTop + this.root.clientHeight) / ROW) + ROWS_BEYOND
    const there = new Map([...this.space.children].map((card) => [card.dataset.name, card]))
    const cards = new Set()
    for (let at = first * columns; at < Math.min(this.list.length, last * columns); at++) {
      const picture = this.list[at]
      const card = there.get(picture.name) ?? this.#card(picture.name)
      card.style.left = `${CARD.gap + (at % columns) * (CARD.width + CARD.gap)}px`
      card.style.top = `${CARD.gap + Math.floor(at / columns) * ROW}px`
      this.#fill(card, picture)
      cards.add(card)
    }
    for (const card of [...this.space.children]) if (!cards.has(card)) card.remove()
    for (const card of cards) if (!card.isConnected) this.space.append(card)
  }

  #card(name) {
    const title = "Leave this picture out, or include it again (X)"
    const out = make("button", { class: "lwb-out", type: "button", title })
    out.addEventListener("click", (event) => {
      event.stopPropagation()
      this.acts.toggle(name)
      this.root.focus()
    })
    const image = make("img", { loading: "lazy", decoding: "async", draggable: false, alt: "" })
    const tokens = make("span", { class: "lwb-tokens" })
    const card = make("div", { class: "lwb-card", role: "option", data: { name } }, image, make("p"), tokens, out)
    card.addEventListener("click", () => this.acts.choose(name))
    card.addEventListener("dblclick", () => this.acts.edit(name))
    return card
  }

  #fill(card, picture) {
    const [image, text, tokens, out] = card.children
    const address = this.acts.thumbnail(picture)
    if (image.dataset.address !== address) image.src = image.dataset.address = address
    card.title = picture.name
    card.ariaSelected = picture.name === this.chosen
    card.classList.toggle("is-chosen", picture.name === this.chosen)
    card.classList.toggle("is-edited", picture.caption !== picture.original)
    card.classList.toggle("is-excluded", picture.excluded)
    if (text.textContent !== picture.caption) text.textContent = picture.caption
    tokens.hidden = !picture.counted && !isLong(picture)
    tokens.textContent = picture.counted ? picture.tokens : `over ${TOKEN_LIMIT}`
    tokens.classList.toggle("is-long", isLong(picture))
    out.textContent = picture.excluded ? "left out" : "×"
  }
}
