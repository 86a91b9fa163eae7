// The pictures of one dataset as the server has them, what is shown of them, and every edit with its way back.
//
// Nothing here touches the page. The server is the truth: an edit stands here as soon as it is saved there.

import { hasTag, tagCounts } from "./captions.js"

const PAGE = 200 // as many as the server gives at a time
export const TOKEN_LIMIT = 75 // what one piece of CLIP takes

export const SHOWN = {
  all: ["All", () => true],
  edited: ["Edited", (picture) => picture.excluded || picture.caption !== picture.original],
  empty: ["Without a caption", (picture) => !picture.caption.trim()],
  long: [`Over ${TOKEN_LIMIT} tokens`, (picture) => (picture.tokens ?? 0) > TOKEN_LIMIT],
  excluded: ["Left out", (picture) => picture.excluded],
}

export class Store {
  // fetchApi: (path, options) => Promise<Response>. changed: called after each change with what to say, or "".
  constructor(key, fetchApi, changed) {
    this.key = key
    this.fetchApi = fetchApi
    this.changed = changed
    this.pictures = []
    this.byName = new Map()
    this.filter = { text: "", tag: "", shown: "all" }
    this.undone = []
    this.done = []
    this.queue = Promise.resolve()
  }

  path(rest = "") {
    return `/lora_workbench/datasets/${this.key}${rest}`
  }

  async ask(rest, options) {
    const answer = await this.fetchApi(this.path(rest), options)
    const body = await answer.json().catch(() => ({}))
    if (!answer.ok) throw Object.assign(new Error(body.error ?? answer.statusText), { status: answer.status, body })
    return body
  }

  post(rest, body) {
    const headers = { "Content-Type": "application/json" }
    return this.ask(rest, { method: "POST", headers, body: JSON.stringify(body) })
  }

  async load() {
    const found = []
    for (let total = 1; found.length < total; ) {
      const page = await this.ask(`?start=${found.length}&count=${PAGE}`)
      if (!page.pictures.length) break
      found.push(...page.pictures)
      total = page.total
    }
    this.pictures = found
    this.byName = new Map(found.map((picture, at) => [picture.name, at]))
    this.changed("")
  }

  get(name) {
    return this.pictures[this.byName.get(name)]
  }

  take(pictures) {
    for (const picture of pictures) this.pictures[this.byName.get(picture.name)] = picture
  }

  shown() {
    const { text, tag, shown } = this.filter
    const words = text.toLowerCase().split(/\s+/).filter(Boolean)
    return this.pictures.filter((picture) => {
      if (!SHOWN[shown][1](picture)) return false
      if (tag && !hasTag(picture.caption, tag)) return false
      const all = `${picture.name}\n${picture.caption}`.toLowerCase()
      return words.every((word) => all.includes(word))
    })
  }

  tags() {
    return tagCounts(this.pictures.filter((picture) => !picture.excluded).map((picture) => picture.caption))
  }

  // Save edits: [{name, caption?, excluded?}, …]. Those that change nothing are not sent. One after another, so that
  // each names the revision that the one before it made.
  edit(edits, { undoable = true } = {}) {
    const run = () => this.#edit(edits, undoable)
    this.queue = this.queue.then(run, run)
    return this.queue
  }

  async #edit(edits, undoable) {
    const before = []
    const sent = []
    for (const { name, caption, excluded } of edits) {
      const now = this.get(name)
      if (!now) continue
      const change = { name, revision: now.revision }
      // A caption as it came is no edit.
      if (caption !== undefined && caption !== now.caption) change.caption = caption === now.original ? null : caption
      if (excluded !== undefined && excluded !== now.excluded) change.excluded = excluded
      if (Object.keys(change).length < 3) continue
      sent.push(change)
      before.push({ name, caption: now.caption, excluded: now.excluded })
    }
    if (!sent.length) return true
    try {
      this.take((await this.post("/edits", { edits: sent })).pictures)
    } catch (error) {
      if (error.status === 409) await this.load() // somebody else's edit is to be seen before it is written over
      this.changed(error.message)
      return false
    }
    if (undoable) {
      this.done.push(before)
      this.undone = []
    }
    this.changed("")
    return true
  }

  undo() {
    return this.#back(this.done, this.undone)
  }

  redo() {
    return this.#back(this.undone, this.done)
  }

  async #back(from, to) {
    await this.queue
    const edits = from.pop()
    if (!edits) return
    const now = edits.map(({ name }) => {
      const { caption, excluded } = this.get(name)
      return { name, caption, excluded }
    })
    const done = await this.edit(edits, { undoable: false })
    if (done) to.push(now)
    else from.push(edits)
    return edits[0].name
  }

  async writeTextFiles(over) {
    await this.queue
    const { written, problems } = await this.post("/text_files", { over })
    return `${written} caption file${written === 1 ? "" : "s"} written. ${problems.slice(0, 3).join(" ")}`
  }
}
