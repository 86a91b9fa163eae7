// The pictures of one dataset as the server has them, the filters, and the history of edits.
//
// Nothing here touches the page. The server is the truth: an edit appears here once the server has saved it.

import { hasTag, tagCounts } from "./captions.js"
import { counted } from "./dom.js"

const PAGE = 200 // pictures per request, the server's limit
const MOST_EDITS = 500 // edits per request
const KEEPALIVE = 60_000 // bytes that a browser still sends after its page was closed
export const TOKEN_LIMIT = 75 // tokens in one chunk of CLIP

// Without a text encoder, `tokens` is a lower bound.
export const isLong = (picture) => picture.tokens > TOKEN_LIMIT

export const SHOWN = {
  all: ["All", () => true],
  edited: ["Edited", (picture) => picture.excluded || picture.caption !== picture.original],
  empty: ["Without a caption", (picture) => !picture.caption.trim()],
  long: [`Over ${TOKEN_LIMIT} tokens`, isLong],
  excluded: ["Left out", (picture) => picture.excluded],
}

const resolved = (value, now) => (typeof value === "function" ? value(now) : value)

export class Store {
  // fetchApi: (path, options) => Promise<Response>. changed: called after each change with a message, or "".
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
    this.contested = new Set() // pictures that somebody else edited while the user typed
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

  post(rest, content) {
    const body = JSON.stringify(content)
    const headers = { "Content-Type": "application/json" }
    return this.ask(rest, { method: "POST", headers, body, keepalive: new TextEncoder().encode(body).length < KEEPALIVE })
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

  // Saves edits: [{name, caption?, excluded?}, …]. A value may be a function of the present value. Calls run one after
  // another, so each sees the result of the one before. Returns the number of changed pictures, or null on failure.
  // `typed` edits of a picture that somebody else edited in the meantime are not saved over that edit.
  edit(edits, { undoable = true, typed = false } = {}) {
    return this.#inTurn(async () => {
      const { before, failed } = await this.#edit(edits, typed)
      if (before.length && undoable) {
        this.done.push(before)
        this.undone = []
      }
      this.changed(failed)
      return failed ? null : before.length
    })
  }

  // Undoes the last step. Returns the name of one of its pictures.
  undo() {
    return this.#back("done", "undone")
  }

  redo() {
    return this.#back("undone", "done")
  }

  async writeTextFiles(over) {
    await this.queue
    const { written, problems } = await this.post("/text_files", { over })
    return `${counted(written, "caption file")} written. ${problems.slice(0, 3).join(" ")}`
  }

  #inTurn(act) {
    this.queue = this.queue.then(act, act)
    return this.queue
  }

  #back(from, to) {
    return this.#inTurn(async () => {
      const edits = this[from].pop()
      if (!edits) return
      const { before, failed } = await this.#edit(edits)
      if (before.length) this[to].push(before)
      if (failed) {
        const back = new Set(before.map(({ name }) => name))
        this[from].push(edits.filter(({ name }) => !back.has(name)))
      }
      this.changed(failed)
      if (!failed) return edits.find(({ name }) => this.get(name))?.name
    })
  }

  // Returns the values before the change, and the error or "". If many edits fail, the first ones may be saved.
  async #edit(edits, typed = false) {
    const before = []
    const sent = []
    for (const { name, caption, excluded } of edits) {
      const now = this.get(name)
      if (!now) continue
      const change = { name, revision: now.revision }
      const text = resolved(caption, now.caption)
      const out = resolved(excluded, now.excluded)
      // The original caption is no edit.
      if (text !== undefined && text !== now.caption) change.caption = text === now.original ? null : text
      if (out !== undefined && out !== now.excluded) change.excluded = out
      if (Object.keys(change).length < 3) continue
      sent.push(change)
      before.push({ name, caption: now.caption, excluded: now.excluded })
    }
    for (let at = 0; at < sent.length; at += MOST_EDITS) {
      try {
        this.take((await this.post("/edits", { edits: sent.slice(at, at + MOST_EDITS) })).pictures)
      } catch (error) {
        if (error.status === 409) {
          await this.load().catch(() => {})
          if (typed) for (const { name } of sent) this.contested.add(name)
        }
        return { before: before.slice(0, at), failed: `Not saved: ${error.message}` }
      }
    }
    return { before, failed: "" }
  }
}
