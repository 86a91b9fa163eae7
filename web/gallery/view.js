// The gallery on the page: the grid, the chosen picture with its caption, the tags, and the user's actions.

import * as captions from "./captions.js"
import { button, counted, make } from "./dom.js"
import { Grid } from "./grid.js"
import { meaning } from "./keys.js"
import { SHOWN, Store, TOKEN_LIMIT, isLong } from "./store.js"
import { STYLE } from "./style.js"
import { Tags } from "./tags.js"

const IDLE = 800 // milliseconds without typing after which a caption is saved
const NAME_END = 12 // last characters of a file name, always shown

const BULK = {
  front: ["Add in front", ["text"], (text) => (caption) => captions.addInFront(caption, text)],
  end: ["Add at the end", ["text"], (text) => (caption) => captions.addAtEnd(caption, text)],
  replace: ["Replace", ["text", "replacement"], (text, other) => (caption) => captions.replaceText(caption, text, other)],
  remove: ["Remove tag", ["tag"], (tag) => (caption) => captions.removeTag(caption, tag.trim())],
}

export class View {
  // api: ComfyUI's api, with fetchApi and apiURL.
  constructor(api) {
    this.api = api
    this.store = null
    this.list = []
    this.chosen = ""
    this.drafts = new Map() // typed captions that are not saved yet, by picture
    this.place = 0 // index of the chosen picture in the list, or its last index if it is filtered out now
    this.turn = 0
    // This attribute makes the Vue renderer leave the wheel to the gallery; newer ones only while it has the focus.
    this.root = make("div", { class: "lwb", tabIndex: -1, data: { captureWheel: "true" } })
    this.root.append(make("style", { textContent: STYLE }))
    this.#build()
    // Otherwise the canvas below would move, zoom, delete and undo too.
    for (const kind of ["wheel", "pointerdown", "pointermove", "dblclick", "contextmenu", "copy", "paste", "cut"])
      this.root.addEventListener(kind, (event) => event.stopPropagation())
    this.root.addEventListener("keydown", (event) => this.#key(event))
    // ComfyUI uses Ctrl+Z for the whole graph unless an input or an element of type "textarea" has the focus. So the
    // parts of the gallery that take keys get that type, and buttons give the focus back.
    this.root.type = this.grid.type = "textarea"
    this.root.addEventListener("click", ({ target }) => target.closest("button:not(.lwb-keeps)") && this.grid.focus())
    for (const select of [this.kind, this.operation]) select.addEventListener("change", () => this.grid.focus())
    this.closing = () => this.save()
    window.addEventListener("pagehide", this.closing)
    this.note("Queue the graph once to see the pictures here.")
  }

  // Shows a dataset. Captions typed in the previous dataset are saved there.
  async show(key) {
    const turn = ++this.turn
    const fetchApi = (path, options) => this.api.fetchApi(path, options)
    const store = new Store(key, fetchApi, (text) => this.store === store && this.#changed(text))
    await this.save()
    try {
      await store.load()
    } catch (error) {
      if (turn === this.turn) this.store ? this.#changed(error.message) : this.note(error.message)
      return
    }
    await this.save()
    if (turn !== this.turn) return // a later call took over
    const { store: old } = this
    if (old?.key === key) {
      Object.assign(store, { filter: old.filter, done: old.done, undone: old.undone, contested: old.contested })
      // Edits saved while the pages loaded are newer than the pages.
      await old.queue
      store.take(old.pictures.filter(({ name, revision }) => revision > (store.get(name)?.revision ?? Infinity)))
    } else {
      this.drafts.clear()
      this.typing = null
      this.search.value = ""
      this.kind.value = "all"
    }
    if (turn !== this.turn) return
    this.store = store
    this.#changed("")
    if (!store.get(this.chosen)) this.#choose(store.pictures[0]?.name ?? "", false)
  }

  note(text) {
    this.pictures.note(text)
    for (const control of this.root.querySelectorAll("input, select, textarea, button")) control.disabled = true
  }

  end() {
    this.save()
    this.pictures.end()
    window.removeEventListener("pagehide", this.closing)
  }

  // -- building ------------------------------------------------------------------------------

  #build() {
    this.search = make("input", { class: "lwb-grow", type: "search", placeholder: "Search names and captions  ( / )" })
    this.search.addEventListener("input", () => this.#filter({ text: this.search.value }))
    const kinds = Object.entries(SHOWN).map(([value, [textContent]]) => make("option", { value, textContent }))
    this.kind = make("select", { title: "Filter the pictures" }, ...kinds)
    this.kind.addEventListener("change", () => this.#filter({ shown: this.kind.value }))
    this.count = make("span", { class: "lwb-count" })
    this.undoButton = button("Undo", "Undo the last edit (Ctrl+Z)", () => this.#undo("undo"))
    this.redoButton = button("Redo", "Redo the edit (Ctrl+Shift+Z)", () => this.#undo("redo"))

    this.operation = make("select", { title: "Change the captions of all pictures shown" })
    for (const [value, [textContent]] of Object.entries(BULK)) this.operation.append(make("option", { value, textContent }))
    this.operation.addEventListener("change", () => this.#bulkFields())
    this.first = make("input", { class: "lwb-grow" })
    this.second = make("input", { class: "lwb-grow" })
    this.apply = button("", "Change the captions of all pictures shown; Ctrl+Z undoes it", () => this.#bulk())
    this.write = button("Write .txt", "Write the captions to .txt files next to the pictures", () => this.#writeFiles())
    this.over = make("input", { type: "checkbox", title: "Overwrite existing .txt files" })

    this.pictures = new Grid({
      thumbnail: (picture) => this.#thumbnail(picture),
      choose: (name) => this.#choose(name, true),
      edit: () => this.text.focus(),
      toggle: (name) => this.#toggle(name),
    })
    this.grid = this.pictures.root

    this.look = make("img", { class: "lwb-look", alt: "" })
    this.name = make("div", { class: "lwb-name" })
    this.text = make("textarea", { placeholder: "Caption", spellcheck: true })
    this.text.addEventListener("input", () => this.#typed())
    this.text.addEventListener("blur", () => this.save())
    this.theirs = make("div", { class: "lwb-theirs", hidden: true })
    this.tokens = make("span", { class: "lwb-count lwb-grow" })
    this.original = button("Restore original", "Undo all edits of this caption", () => this.#restore())
    this.tags = new Tags({
      filter: (tag) => this.#filter({ tag }),
      rename: (tag, name) => this.#everywhere((caption) => captions.renameTag(caption, tag, name)),
      remove: (tag) => this.#everywhere((caption) => captions.removeTag(caption, tag)),
    })
    this.said = make("div", { class: "lwb-said" })
    this.said.setAttribute("role", "status")

    const bar = (...parts) => make("div", { class: "lwb-bar" }, ...parts)
    this.root.append(
      bar(this.search, this.kind, this.count, this.undoButton, this.redoButton),
      make(
        "div",
        { class: "lwb-main" },
        this.grid,
        make("div", { class: "lwb-side" }, this.look, this.name, this.text, this.theirs, bar(this.tokens, this.original), this.tags.root),
      ),
      bar(this.operation, this.first, this.second, this.apply, this.write, make("label", {}, this.over, " overwrite")),
      this.said,
    )
    this.#bulkFields()
  }

  // -- drawing -------------------------------------------------------------------------------

  #changed(text) {
    this.said.textContent = text
    this.said.title = text
    if (!this.store) return
    for (const control of this.root.querySelectorAll("input, select, textarea, button")) control.disabled = false
    this.list = this.store.shown()
    this.pictures.show(this.list, this.chosen)
    this.tags.show(this.store.tags(), this.store.filter.tag)
    this.#drawChosen()
    const out = this.store.pictures.filter((picture) => picture.excluded).length
    const all = this.store.pictures.length
    this.count.textContent = `${this.list.length} of ${all}${out ? `, ${out} left out` : ""}`
    this.apply.textContent = `Apply to ${this.list.length}`
    this.apply.disabled = !this.list.length
    this.undoButton.disabled = !this.store.done.length
    this.redoButton.disabled = !this.store.undone.length
  }

  #thumbnail(picture) {
    try {
      const query = `?name=${encodeURIComponent(picture.name)}&v=${picture.stamp}`
      return this.api.apiURL(this.store.path("/thumbnail") + query)
    } catch {
      return "" // a file name that is not valid text cannot be part of an address
    }
  }

  #drawChosen() {
    const picture = this.store.get(this.chosen)
    this.text.disabled = !picture
    this.original.disabled = !picture || picture.caption === picture.original
    this.text.classList.toggle("is-draft", this.drafts.has(this.chosen))
    if (!picture) {
      this.name.textContent = this.text.value = this.tokens.textContent = ""
      this.theirs.hidden = true
      this.look.removeAttribute("src")
      return
    }
    const address = this.#thumbnail(picture)
    if (this.look.dataset.address !== address) this.look.src = this.look.dataset.address = address
    const size = ` · ${picture.width}×${picture.height}`
    const [start, end] = [picture.name.slice(0, -NAME_END), picture.name.slice(-NAME_END)]
    this.name.replaceChildren(make("span", { textContent: start }), make("span", { textContent: end + size }))
    this.name.title = picture.name
    const value = this.drafts.get(picture.name) ?? picture.caption
    if (this.text.value !== value) this.text.value = value
    const least = isLong(picture) ? `more than ${TOKEN_LIMIT} tokens` : ""
    this.tokens.textContent = picture.counted ? counted(picture.tokens, "token") : least
    this.tokens.style.color = isLong(picture) ? "#ff6b6b" : ""
    const contested = this.store.contested.has(picture.name) && this.drafts.has(picture.name)
    this.theirs.hidden = !contested
    if (contested) this.theirs.textContent = `It is now: “${picture.caption}”. Ctrl+Enter overwrites it; Escape keeps it.`
  }

  // -- actions -------------------------------------------------------------------------------

  #filter(change) {
    Object.assign(this.store.filter, change)
    this.pictures.toTop()
    this.#changed("")
  }

  #choose(name, reveal) {
    this.save()
    if (name !== this.chosen) this.typing = null
    this.chosen = name
    if (reveal) this.grid.focus({ preventScroll: true })
    const at = this.list.findIndex((picture) => picture.name === name)
    if (at >= 0) {
      this.place = at
      this.pictures.reveal(at)
    }
    this.pictures.show(this.list, name)
    this.#drawChosen()
  }

  #move(by) {
    if (!this.list.length) return
    this.#choose(this.list[this.#beside(by)].name, false)
  }

  // The index at a distance from the chosen picture. If that picture is filtered out now, the next one has its index.
  #beside(by) {
    const at = this.list.findIndex((picture) => picture.name === this.chosen)
    const to = at >= 0 ? at + by : this.place + (by > 0 ? by - 1 : by)
    return Math.min(this.list.length - 1, Math.max(0, to))
  }

  #typed() {
    this.typing ??= { name: this.chosen, before: this.store.get(this.chosen)?.caption, saved: false }
    this.drafts.set(this.chosen, this.text.value)
    clearTimeout(this.idle)
    this.idle = setTimeout(() => this.save(), IDLE)
  }

  // Saves the typed captions. A caption that cannot be saved is kept as typed and tried again the next time. If somebody
  // else edited it in the meantime, it is saved only when the user says so. All typing in one caption is one undo step.
  async save() {
    clearTimeout(this.idle)
    const { store, typing } = this
    if (!store) return
    await Promise.all(
      [...this.drafts].filter(([name]) => !store.contested.has(name)).map(async ([name, caption]) => {
        const ours = typing?.name === name ? typing : null
        const changed = await store.edit([{ name, caption }], { undoable: !ours?.saved, typed: true })
        if (changed && ours) ours.saved = true
        if (changed === null && ours) ours.before = store.get(name)?.caption // perhaps somebody else's edit
        if (changed !== null && this.drafts.get(name) === caption) this.drafts.delete(name)
        if (store === this.store && name === this.chosen) this.#drawChosen()
      }),
    )
  }

  // Escape: restores the caption from before the typing.
  #forget() {
    clearTimeout(this.idle)
    const { typing } = this
    this.drafts.delete(this.chosen)
    this.typing = null
    if (this.store.contested.delete(this.chosen)) {
      this.#changed("")
      return
    }
    if (typing?.name === this.chosen && typing.before !== undefined)
      this.store.edit([{ name: typing.name, caption: typing.before }])
    this.#drawChosen()
  }

  // Saves what was typed. Further typing is an undo step of its own.
  async #settle() {
    await this.save()
    this.typing = null
  }

  #toggle(name) {
    this.store.edit([{ name, excluded: (now) => !now }])
  }

  async #restore() {
    await this.#settle()
    // A contested draft is not saved. Restoring the original discards both the draft and the other edit.
    if (this.store.contested.delete(this.chosen)) this.drafts.delete(this.chosen)
    const picture = this.store.get(this.chosen)
    if (picture) this.store.edit([{ name: picture.name, caption: picture.original }])
  }

  async #undo(which) {
    await this.#settle()
    const name = await this.store[which]()
    if (name) this.#choose(name, false)
  }

  #bulkFields() {
    const [, fields] = BULK[this.operation.value]
    for (const [at, input] of [this.first, this.second].entries()) {
      input.hidden = at >= fields.length
      input.placeholder = fields[at] ?? ""
    }
  }

  async #bulk() {
    await this.#settle()
    const [, , operation] = BULK[this.operation.value]
    if (!this.first.value.trim()) {
      this.#changed("The field is empty. Type a text or tag first.")
      return
    }
    const change = operation(this.first.value, this.second.value)
    this.#all(this.list, change)
  }

  async #everywhere(change) {
    await this.#settle()
    this.#all(this.store.pictures, change)
  }

  async #all(pictures, change) {
    const changed = await this.store.edit(pictures.map(({ name }) => ({ name, caption: change })))
    if (changed !== null) this.#changed(`${counted(changed, "caption")} changed.`)
  }

  async #writeFiles() {
    await this.save()
    const existing = this.over.checked ? "Existing files are overwritten." : "Existing captions are kept."
    if (!window.confirm(`Write the captions to .txt files next to the pictures? ${existing}`)) return
    try {
      this.#changed(await this.store.writeTextFiles(this.over.checked))
    } catch (error) {
      this.#changed(error.message)
    }
  }

  #key(event) {
    if (!event.ctrlKey && !event.metaKey) event.stopPropagation() // ComfyUI keeps its own shortcuts, such as Ctrl+S
    const { target } = event
    const inGrid = target === this.grid || target === this.root
    const where = target === this.text ? "caption" : target.matches("input, select") ? "field" : inGrid ? "grid" : ""
    const [what, how] = (this.store && meaning(event, where)) || []
    if (!what) return
    event.preventDefault()
    event.stopPropagation()
    const columns = this.pictures.columns()
    const page = this.pictures.page()
    const places = {
      ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, PageUp: -page, PageDown: page,
      Home: -Infinity, End: Infinity,
    } // prettier-ignore
    const acts = {
      next: () => this.#next(how),
      keep: () => (this.store.contested.delete(this.chosen), this.grid.focus()),
      forget: () => (this.#forget(), this.grid.focus()),
      leave: () => this.grid.focus(),
      undo: () => this.#undo("undo"),
      redo: () => this.#undo("redo"),
      search: () => this.search.focus(),
      move: () => this.#move(places[how]),
      write: () => this.#writeCaption(),
      toggle: () => this.#toggle(this.chosen),
    }
    acts[what]()
  }

  #writeCaption() {
    this.text.focus()
    this.text.setSelectionRange(this.text.value.length, this.text.value.length)
  }

  #next(by) {
    const next = this.list[this.#beside(by)]
    if (next) this.#choose(next.name, false)
    this.#writeCaption()
  }
}
