// The gallery on the page: a grid that draws only the rows in sight, the chosen picture with its caption, the tags.

import * as captions from "./captions.js"
import { SHOWN, Store, TOKEN_LIMIT } from "./store.js"

const CARD = { width: 148, height: 196, gap: 8 }
const ROWS_BEYOND = 2 // drawn above and below those in sight
const MOST_TAGS = 300
const IDLE = 800 // milliseconds of no typing after which a caption is saved

const STYLE = `
.lwb { display: flex; flex-direction: column; gap: 6px; width: 100%; height: 100%; min-height: 400px; padding: 6px;
  box-sizing: border-box; contain: layout size; font: 12px/1.35 system-ui, sans-serif; color: var(--fg-color, #ddd);
  background: var(--comfy-menu-bg, #222); border-radius: 6px; outline: none; overflow: hidden; text-align: left }
.lwb * { box-sizing: border-box }
/* The Vue renderer gives a widget its least height, the canvas what the node has. */
[data-node-id] .lwb { min-height: 560px }
.lwb input, .lwb select, .lwb textarea, .lwb button { font: inherit; color: inherit; border-radius: 4px;
  background: var(--comfy-input-bg, #333); border: 1px solid var(--border-color, #555); padding: 3px 6px; min-width: 0 }
.lwb button { cursor: pointer; white-space: nowrap }
.lwb button:disabled { opacity: .4; cursor: default }
.lwb :focus-visible { outline: 2px solid #5b9dff; outline-offset: -1px }
.lwb-bar { display: flex; gap: 6px; align-items: center; flex: none }
.lwb-bar .lwb-grow { flex: 1 1 80px }
.lwb-count { opacity: .75; white-space: nowrap; font-variant-numeric: tabular-nums }
.lwb-main { display: flex; gap: 6px; flex: 1 1 0; min-height: 0 }
.lwb-grid { position: relative; flex: 1 1 0; min-width: 0; overflow-y: auto; overscroll-behavior: contain; outline: none;
  border-radius: 4px; background: var(--comfy-input-bg, #2a2a2a) }
.lwb-space { position: relative; width: 100% }
.lwb-card { position: absolute; width: ${CARD.width}px; height: ${CARD.height}px; border-radius: 5px; overflow: hidden;
  border: 1px solid var(--border-color, #444); background: var(--comfy-menu-bg, #222); cursor: pointer }
.lwb-card.is-chosen { border-color: #5b9dff; box-shadow: 0 0 0 1px #5b9dff }
.lwb-card img { display: block; width: 100%; height: 124px; object-fit: contain; background: #0003 }
.lwb-card p { margin: 3px 5px; height: 48px; overflow: hidden; display: -webkit-box; -webkit-line-clamp: 3;
  -webkit-box-orient: vertical; overflow-wrap: anywhere; white-space: pre-line }
.lwb-card.is-edited p { color: #8fc2ff }
.lwb-card.is-excluded img, .lwb-card.is-excluded p { opacity: .3 }
.lwb-card .lwb-out { position: absolute; left: 4px; top: 4px; padding: 0 5px; opacity: 0 }
.lwb-card:hover .lwb-out, .lwb-card.is-excluded .lwb-out, .lwb-card .lwb-out:focus { opacity: 1 }
.lwb-tokens { position: absolute; right: 4px; bottom: 3px; padding: 0 4px; border-radius: 3px; background: #0008;
  color: #fff; font-size: 10px }
.lwb-tokens.is-long { background: #c62828 }
.lwb-side { display: flex; flex-direction: column; gap: 6px; flex: 0 0 236px; min-height: 0; overflow: hidden }
.lwb-name { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; opacity: .75; flex: none }
.lwb-side textarea.is-draft { border-color: #e0a33a }
.lwb-side textarea { flex: 1 1 0; min-height: 72px; resize: none; width: 100% }
.lwb-look { flex: 0 1 132px; min-height: 40px; width: 100%; object-fit: contain; border-radius: 4px; background: #0003 }
.lwb-tags { flex: 1.4 1 0; min-height: 60px; overflow-y: auto; overscroll-behavior: contain; border-radius: 4px;
  background: var(--comfy-input-bg, #2a2a2a); padding: 2px }
.lwb-tag { display: flex; gap: 3px; align-items: center; padding: 1px 3px; border-radius: 3px }
.lwb-tag.is-chosen { background: #5b9dff44 }
.lwb-tag > span { flex: 1 1 0; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; cursor: pointer }
.lwb-tag button { padding: 0 4px; border: none; background: none; opacity: .5 }
.lwb-tag button:hover, .lwb-tag button:focus-visible { opacity: 1 }
.lwb-tag input { flex: 1 1 0 }
.lwb-note { margin: auto; padding: 16px; text-align: center; opacity: .8 }
.lwb-said { min-height: 1.35em; flex: none; overflow: hidden; text-overflow: ellipsis; white-space: nowrap }
`

const BULK = {
  front: ["Add in front", ["text"], (text) => (caption) => captions.addInFront(caption, text)],
  end: ["Add at the end", ["text"], (text) => (caption) => captions.addAtEnd(caption, text)],
  replace: ["Replace", ["this", "by"], (text, by) => (caption) => captions.replaceText(caption, text, by)],
  remove: ["Remove tag", ["tag"], (tag) => (caption) => captions.removeTag(caption, tag.trim())],
}

function make(kind, props = {}, ...children) {
  const { class: css, data, ...others } = props
  const made = Object.assign(document.createElement(kind), others)
  if (css) made.className = css
  Object.assign(made.dataset, data)
  made.append(...children)
  return made
}

const plural = (count, what) => `${count} ${what}${count === 1 ? "" : "s"}`

export class View {
  // api: ComfyUI's, with fetchApi and apiURL.
  constructor(api) {
    this.api = api
    this.store = null
    this.list = []
    this.chosen = ""
    this.drafts = new Map() // what was typed and is not saved yet, by picture
    this.turn = 0
    // The attribute by which the Vue renderer leaves the wheel to what scrolls.
    this.root = make("div", { class: "lwb", tabIndex: -1, data: { captureWheel: "true" } })
    this.root.append(make("style", { textContent: STYLE }))
    this.#build()
    // The canvas below would move, zoom, delete and undo by what is meant for the gallery.
    for (const kind of ["wheel", "pointerdown", "pointermove", "dblclick", "contextmenu", "copy", "paste", "cut"])
      this.root.addEventListener(kind, (event) => event.stopPropagation())
    this.root.addEventListener("keydown", (event) => this.#key(event))
    // ComfyUI takes Ctrl+Z as its own, for the whole graph, unless what has the focus is an input or is called a
    // textarea. So those parts of the gallery that take keys are called that, and buttons give the focus back.
    this.root.type = this.grid.type = "textarea"
    this.root.addEventListener("click", ({ target }) => target.closest("button:not(.lwb-keeps)") && this.grid.focus())
    for (const select of [this.kind, this.operation]) select.addEventListener("change", () => this.grid.focus())
    this.closing = () => this.save()
    window.addEventListener("pagehide", this.closing)
    this.note("Queue the graph once to see the pictures here.")
  }

  // Show a dataset. What was typed into the one before is saved in that one.
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
    if (turn !== this.turn) return // a later call has won
    const { store: old } = this
    if (old?.key === key) {
      Object.assign(store, { filter: old.filter, done: old.done, undone: old.undone })
      // What was saved while the pages came is newer than they are.
      await old.queue
      store.take(old.pictures.filter(({ name, revision }) => revision > (store.get(name)?.revision ?? Infinity)))
    } else {
      this.drafts.clear()
      this.search.value = ""
      this.kind.value = "all"
    }
    if (turn !== this.turn) return
    this.store = store
    this.#changed("")
    if (!store.get(this.chosen)) this.#choose(store.pictures[0]?.name ?? "", false)
  }

  note(text) {
    this.space.replaceChildren()
    this.space.style.height = "100%"
    this.space.append(make("div", { class: "lwb-note", textContent: text }))
    for (const control of this.root.querySelectorAll("input, select, textarea, button")) control.disabled = true
  }

  end() {
    this.save()
    this.seen.disconnect()
    window.removeEventListener("pagehide", this.closing)
  }

  // -- what there is -------------------------------------------------------------------------

  #build() {
    this.search = make("input", { class: "lwb-grow", type: "search", placeholder: "Search names and captions  ( / )" })
    this.search.addEventListener("input", () => this.#filter({ text: this.search.value }))
    const kinds = Object.entries(SHOWN).map(([value, [textContent]]) => make("option", { value, textContent }))
    this.kind = make("select", { title: "Which pictures are shown" }, ...kinds)
    this.kind.addEventListener("change", () => this.#filter({ shown: this.kind.value }))
    this.count = make("span", { class: "lwb-count" })
    this.undoButton = this.#button("Undo", "Take the last edit back (Ctrl+Z)", () => this.#undo("undo"))
    this.redoButton = this.#button("Redo", "Do it again (Ctrl+Shift+Z)", () => this.#undo("redo"))

    this.operation = make("select", { title: "What is done to every picture shown" })
    for (const [value, [textContent]] of Object.entries(BULK)) this.operation.append(make("option", { value, textContent }))
    this.operation.addEventListener("change", () => this.#bulkFields())
    this.first = make("input", { class: "lwb-grow" })
    this.second = make("input", { class: "lwb-grow" })
    this.apply = this.#button("", "Every picture shown; Ctrl+Z takes it back", () => this.#bulk())
    this.write = this.#button("Write .txt", "Write the captions to .txt files beside the pictures", () => this.#write())
    this.over = make("input", { type: "checkbox", title: "Write over .txt files that are there" })

    this.space = make("div", { class: "lwb-space" })
    this.grid = make("div", { class: "lwb-grid", tabIndex: 0, role: "listbox" }, this.space)
    this.grid.setAttribute("aria-label", "Pictures")
    this.grid.addEventListener("scroll", () => this.#draw(), { passive: true })
    this.seen = new ResizeObserver(() => this.#draw())
    this.seen.observe(this.grid)

    this.look = make("img", { class: "lwb-look", alt: "" })
    this.name = make("div", { class: "lwb-name" })
    this.text = make("textarea", { placeholder: "Caption", spellcheck: true })
    this.text.addEventListener("input", () => this.#typed())
    this.text.addEventListener("blur", () => this.save())
    this.tokens = make("span", { class: "lwb-count lwb-grow" })
    this.asItCame = this.#button("As it came", "Take all edits of this caption back", () => this.#asItCame())
    this.tags = make("div", { class: "lwb-tags" })
    this.said = make("div", { class: "lwb-said" })
    this.said.setAttribute("role", "status")

    const bar = (...parts) => make("div", { class: "lwb-bar" }, ...parts)
    this.root.append(
      bar(this.search, this.kind, this.count, this.undoButton, this.redoButton),
      make(
        "div",
        { class: "lwb-main" },
        this.grid,
        make("div", { class: "lwb-side" }, this.look, this.name, this.text, bar(this.tokens, this.asItCame), this.tags),
      ),
      bar(this.operation, this.first, this.second, this.apply, this.write, make("label", {}, this.over, " over")),
      this.said,
    )
    this.#bulkFields()
  }

  #button(textContent, title, act) {
    const button = make("button", { type: "button", textContent, title })
    button.addEventListener("click", act)
    return button
  }

  // -- drawing -------------------------------------------------------------------------------

  #changed(text) {
    this.said.textContent = text
    this.said.title = text
    if (!this.store) return
    for (const control of this.root.querySelectorAll("input, select, textarea, button")) control.disabled = false
    this.list = this.store.shown()
    this.#draw()
    this.#drawTags()
    this.#drawChosen()
    const out = this.store.pictures.filter((picture) => picture.excluded).length
    const all = this.store.pictures.length
    this.count.textContent = `${this.list.length} of ${all}${out ? `, ${out} left out` : ""}`
    this.apply.textContent = `Apply to ${this.list.length}`
    this.apply.disabled = !this.list.length
    this.undoButton.disabled = !this.store.done.length
    this.redoButton.disabled = !this.store.undone.length
  }

  #columns() {
    return Math.max(1, Math.floor((this.grid.clientWidth - CARD.gap) / (CARD.width + CARD.gap)))
  }

  // Cards of the rows in sight; those that stay are kept, so that scrolling loads no picture twice.
  #draw() {
    if (!this.store) return
    const columns = this.#columns()
    const high = CARD.height + CARD.gap
    this.space.style.height = `${Math.ceil(this.list.length / columns) * high + CARD.gap}px`
    const first = Math.max(0, Math.floor(this.grid.scrollTop / high) - ROWS_BEYOND)
    const last = Math.ceil((this.grid.scrollTop + this.grid.clientHeight) / high) + ROWS_BEYOND
    const there = new Map([...this.space.children].map((card) => [card.dataset.name, card]))
    const cards = []
    for (let at = first * columns; at < Math.min(this.list.length, last * columns); at++) {
      const picture = this.list[at]
      const card = there.get(picture.name) ?? this.#card(picture.name)
      card.style.left = `${CARD.gap + (at % columns) * (CARD.width + CARD.gap)}px`
      card.style.top = `${CARD.gap + Math.floor(at / columns) * high}px`
      this.#fill(card, picture)
      cards.push(card)
    }
    for (const card of [...this.space.children]) if (!cards.includes(card)) card.remove()
    for (const card of cards) if (!card.isConnected) this.space.append(card)
    if (!this.list.length && !this.space.children.length)
      this.space.append(make("div", { class: "lwb-note", textContent: "No picture is like that." }))
  }

  #card(name) {
    const out = this.#button("", "Leave this picture out, or take it in again (X)", (event) => {
      event.stopPropagation()
      this.#toggle(name)
      this.grid.focus()
    })
    out.className = "lwb-out"
    const card = make(
      "div",
      { class: "lwb-card", data: { name } },
      make("img", { loading: "lazy", decoding: "async", draggable: false, alt: "" }),
      make("p"),
      make("span", { class: "lwb-tokens" }),
      out,
    )
    card.setAttribute("role", "option")
    card.addEventListener("click", () => this.#choose(name, true))
    card.addEventListener("dblclick", () => this.text.focus())
    return card
  }

  #fill(card, picture) {
    const [image, text, tokens, out] = card.children
    const address = this.#thumbnail(picture)
    if (image.dataset.address !== address) {
      image.dataset.address = address
      image.src = address
    }
    card.title = picture.name
    card.setAttribute("aria-selected", picture.name === this.chosen)
    card.classList.toggle("is-chosen", picture.name === this.chosen)
    card.classList.toggle("is-edited", picture.caption !== picture.original)
    card.classList.toggle("is-excluded", picture.excluded)
    if (text.textContent !== picture.caption) text.textContent = picture.caption
    tokens.hidden = picture.tokens === null
    tokens.textContent = picture.tokens
    tokens.classList.toggle("is-long", picture.tokens > TOKEN_LIMIT)
    out.textContent = picture.excluded ? "left out" : "×"
  }

  #thumbnail(picture) {
    try {
      const query = `?name=${encodeURIComponent(picture.name)}&v=${picture.stamp}`
      return this.api.apiURL(this.store.path("/thumbnail") + query)
    } catch {
      return "" // a file name that is no text cannot be asked for
    }
  }

  #drawTags() {
    if (this.renaming) return
    const { scrollTop } = this.tags
    const found = this.store.tags()
    const rows = found.slice(0, MOST_TAGS).map(([tag, count]) => {
      const name = make("span", { textContent: tag, title: `Show only pictures with ${tag}` })
      name.addEventListener("click", () => this.#filter({ tag: this.store.filter.tag === tag ? "" : tag }))
      const rename = this.#button("✎", "Rename everywhere", () => this.#rename(row, tag))
      rename.className = "lwb-keeps" // the focus goes to the new name
      const remove = this.#button("×", "Remove everywhere", () => this.#everywhere((c) => captions.removeTag(c, tag)))
      const many = make("span", { class: "lwb-count", textContent: count })
      many.style.flex = "none"
      const row = make("div", { class: "lwb-tag", data: { tag } }, name, many, rename, remove)
      row.classList.toggle("is-chosen", tag === this.store.filter.tag)
      return row
    })
    if (found.length > MOST_TAGS)
      rows.push(make("div", { class: "lwb-note", textContent: `and ${plural(found.length - MOST_TAGS, "rarer tag")}` }))
    this.tags.replaceChildren(...rows)
    this.tags.scrollTop = scrollTop
  }

  #drawChosen() {
    const picture = this.store.get(this.chosen)
    this.text.disabled = !picture
    this.asItCame.disabled = !picture || picture.caption === picture.original
    this.text.classList.toggle("is-draft", this.drafts.has(this.chosen))
    if (!picture) {
      this.name.textContent = this.text.value = this.tokens.textContent = ""
      this.look.removeAttribute("src")
      return
    }
    const address = this.#thumbnail(picture)
    if (this.look.dataset.address !== address) this.look.src = this.look.dataset.address = address
    this.name.textContent = `${picture.name} · ${picture.width}×${picture.height}`
    this.name.title = picture.name
    const value = this.drafts.get(picture.name) ?? picture.caption
    if (this.text.value !== value) this.text.value = value
    const long = picture.tokens > TOKEN_LIMIT
    this.tokens.textContent = picture.tokens === null ? "" : plural(picture.tokens, "token")
    this.tokens.style.color = long ? "#ff6b6b" : ""
  }

  // -- what a person does --------------------------------------------------------------------

  #filter(change) {
    Object.assign(this.store.filter, change)
    this.grid.scrollTop = 0
    this.#changed("")
  }

  #choose(name, reveal) {
    this.save()
    if (name !== this.chosen) this.typing = null
    this.chosen = name
    if (reveal) this.grid.focus({ preventScroll: true })
    const at = this.list?.findIndex((picture) => picture.name === name) ?? -1
    if (at >= 0) {
      const top = Math.floor(at / this.#columns()) * (CARD.height + CARD.gap)
      const below = top + CARD.height + 2 * CARD.gap - this.grid.clientHeight
      this.grid.scrollTop = Math.max(Math.min(this.grid.scrollTop, top), below)
    }
    this.#draw()
    this.#drawChosen()
  }

  #move(by) {
    if (!this.list?.length) return
    const at = this.list.findIndex((picture) => picture.name === this.chosen)
    const to = at < 0 ? 0 : Math.min(this.list.length - 1, Math.max(0, at + by))
    this.#choose(this.list[to].name, false)
  }

  #typed() {
    this.typing ??= { name: this.chosen, before: this.store.get(this.chosen)?.caption, saved: false }
    this.drafts.set(this.chosen, this.text.value)
    clearTimeout(this.idle)
    this.idle = setTimeout(() => this.save(), IDLE)
  }

  // Save what was typed. What cannot be saved stays as it was typed, and is tried again the next time. All that is
  // typed into one caption before another is chosen is one step back.
  async save() {
    clearTimeout(this.idle)
    const { store, typing } = this
    if (!store) return
    await Promise.all(
      [...this.drafts].map(async ([name, caption]) => {
        const ours = typing?.name === name ? typing : null
        const changed = await store.edit([{ name, caption }], { undoable: !ours?.saved })
        if (changed && ours) ours.saved = true
        if (changed === null && ours) ours.before = store.get(name)?.caption // somebody else's, it may be
        if (changed !== null && this.drafts.get(name) === caption) this.drafts.delete(name)
        if (store === this.store && name === this.chosen) this.#drawChosen()
      }),
    )
  }

  // Escape: the caption as it was before the typing began.
  #forget() {
    clearTimeout(this.idle)
    const { typing } = this
    this.drafts.delete(this.chosen)
    this.typing = null
    if (typing?.name === this.chosen && typing.before !== undefined)
      this.store.edit([{ name: typing.name, caption: typing.before }])
    this.#drawChosen()
  }

  #toggle(name) {
    this.store.edit([{ name, excluded: (now) => !now }])
  }

  async #asItCame() {
    await this.save()
    const picture = this.store.get(this.chosen)
    if (picture) this.store.edit([{ name: picture.name, caption: picture.original }])
  }

  async #undo(which) {
    await this.save()
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
    await this.save()
    const [, , operation] = BULK[this.operation.value]
    if (!this.first.value.trim()) {
      this.#changed("Type what is to be done into the field first.")
      return
    }
    const change = operation(this.first.value, this.second.value)
    this.#all(this.list, change)
  }

  async #everywhere(change) {
    await this.save()
    this.#all(this.store.pictures, change)
  }

  async #all(pictures, change) {
    const changed = await this.store.edit(pictures.map(({ name }) => ({ name, caption: change })))
    if (changed !== null) this.#changed(`${plural(changed, "caption")} changed.`)
  }

  #rename(row, tag) {
    const input = make("input", { value: tag })
    this.renaming = true
    const end = (save) => {
      this.renaming = false
      input.replaceWith(name)
      this.#drawTags()
      if (save && input.value.trim() && input.value.trim() !== tag)
        this.#everywhere((caption) => captions.renameTag(caption, tag, input.value))
    }
    const name = row.firstElementChild
    input.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === "Escape") {
        event.preventDefault()
        event.stopPropagation()
        input.onblur = null
        end(event.key === "Enter")
      }
    })
    input.onblur = () => end(false)
    name.replaceWith(input)
    input.focus()
    input.select()
  }

  async #write() {
    await this.save()
    const files = `.txt files beside the pictures${this.over.checked ? ", over those that are there" : ""}`
    if (!window.confirm(`Write the captions to ${files}?`)) return
    try {
      this.#changed(await this.store.writeTextFiles(this.over.checked))
    } catch (error) {
      this.#changed(error.message)
    }
  }

  #key(event) {
    const key = event.key
    const inText = event.target === this.text
    const typing = inText || event.target.matches("input, select")
    const ctrl = event.ctrlKey || event.metaKey
    if (!ctrl) event.stopPropagation() // shortcuts that are not ours are ComfyUI's: Ctrl+S saves the workflow
    const done = (act) => {
      event.preventDefault()
      event.stopPropagation()
      act()
    }
    if (!this.store) return
    if (inText && key === "Tab") return done(() => this.#next(event.shiftKey ? -1 : 1))
    if (inText && key === "Enter" && ctrl) return done(() => this.grid.focus())
    if (inText && key === "Escape") return done(() => (this.#forget(), this.grid.focus()))
    if (typing) {
      if (key === "Escape") done(() => this.grid.focus())
      return
    }
    if (ctrl && key.toLowerCase() === "z") return done(() => this.#undo(event.shiftKey ? "redo" : "undo"))
    if (ctrl && key.toLowerCase() === "y") return done(() => this.#undo("redo"))
    if ((ctrl && key === "f") || key === "/") return done(() => this.search.focus())
    if (ctrl || (event.target !== this.grid && event.target !== this.root)) return
    const columns = this.#columns()
    const page = columns * Math.max(1, Math.floor(this.grid.clientHeight / (CARD.height + CARD.gap)))
    const moves = {
      ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, PageUp: -page, PageDown: page,
      Home: -Infinity, End: Infinity,
    } // prettier-ignore
    if (key in moves) return done(() => this.#move(moves[key]))
    if (key === "Enter") return done(() => this.#writeCaption())
    if (key === "x" || key === "Delete") return done(() => this.#toggle(this.chosen))
  }

  #writeCaption() {
    this.text.focus()
    this.text.setSelectionRange(this.text.value.length, this.text.value.length)
  }

  #next(by) {
    // By the list as it is now: what is saved may fall out of it.
    const at = this.list.findIndex((picture) => picture.name === this.chosen)
    const next = this.list[Math.min(this.list.length - 1, Math.max(0, at + by))]
    if (next) this.#choose(next.name, false)
    this.#writeCaption()
  }
}
