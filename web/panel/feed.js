// Which run each trainer of the open workflow shows. Runs come as events while they train, and from the server's routes
// after a reload, after a gap, and when a workflow is opened.
//
// Nothing here touches the page.

import { Run } from "./data.js"

const RUNS = "/lora_workbench/runs"

export class Feed {
  // fetchApi: (path, options) => Promise<Response>. workflowId: () => id of the open workflow. changed: called with a
  // node's path and its run, or null, whenever there is something new to show.
  constructor(fetchApi, workflowId, changed) {
    this.fetchApi = fetchApi
    this.workflowId = workflowId
    this.changed = changed
    this.runs = new Map() // by the node's path
    this.workflow = "" // whose runs these are
  }

  // Takes an event of the server: {workflow, node, run, lines}. Those of other workflows are left out.
  take({ workflow, node, run: id, lines }) {
    if (!workflow || workflow !== this.workflowId()) return
    const reused = lines.findLast((line) => line.kind === "reused")
    if (reused) return this.open(node, reused.run, [], true)
    const run = this.runs.get(node)
    if (run?.id !== id) return this.open(node, id, lines)
    if (run.waiting) return void run.waiting.push(...lines)
    let isNew = false
    for (const [at, line] of lines.entries()) {
      if (run.isAfterGap(line)) return this.#refill(node, run, lines.slice(at))
      isNew = run.add(line) || isNew
    }
    if (isNew) this.changed(node, run)
  }

  // Shows a run in a node, with lines that came already. isChosen: whether it is what the node handed on last.
  open(node, id, lines = [], isChosen = false) {
    let run = this.runs.get(node)
    if (run?.id !== id) this.runs.set(node, (run = new Run(id)))
    run.isChosen = isChosen
    return this.#refill(node, run, lines)
  }

  // Shows the newest run of each trainer of the open workflow.
  async restore() {
    const workflow = this.workflowId()
    if (workflow !== this.workflow) this.runs.clear()
    this.workflow = workflow
    for (const [node, run] of this.runs) this.changed(node, run)
    if (!workflow) return
    const answer = await this.fetchApi(`${RUNS}?workflow=${encodeURIComponent(workflow)}`)
    if (!answer.ok) return
    const briefs = await answer.json()
    if (workflow !== this.workflowId()) return
    await Promise.all(briefs.map(({ node, id, state }) => {
      const run = this.runs.get(node)
      const isUnderWay = state === "running"
      if (run && run.id !== id && run.isChosen && !isUnderWay) return null
      return run?.id === id && !isUnderWay && !run.isRunning ? null : this.open(node, id)
    }))
  }

  // Asks for everything again that may have gone on in the meantime.
  async refresh() {
    for (const run of this.runs.values()) run.isChosen = false
    await Promise.all([...this.runs].filter(([, run]) => run.isRunning).map(([node, run]) => this.#refill(node, run)))
    await this.restore()
  }

  // Takes the run that a node handed on. The event says nothing of the workflow: isOurs for what is of the open one.
  async handedOn(node, id, isOurs) {
    const run = this.runs.get(node)
    if (run?.id === id || run?.isRunning) return
    if (isOurs) return this.open(node, id, [], true)
    const workflow = this.workflowId()
    const answer = await this.fetchApi(`${RUNS}/${id}`)
    if (answer.ok && (await answer.json()).workflow === workflow && workflow === this.workflowId())
      return this.open(node, id, [], true)
  }

  // Asks something of a run. Returns what went wrong, or "".
  async wish(run, what) {
    run.ask(what)
    const wrong = await this.#post(`${RUNS}/${run.id}/${what}`)
    if (wrong) run.wishes.delete(what)
    return wrong
  }

  async #post(path) {
    try {
      const answer = await this.fetchApi(path, { method: "POST" })
      if (answer.ok) return ""
      return (await answer.json().catch(() => ({}))).error ?? `ComfyUI answered ${answer.status}.`
    } catch {
      return "ComfyUI does not answer. Start it again, or check the connection."
    }
  }

  // Takes what the server knows of a run, then the lines that came while it was asked.
  async #refill(node, run, lines = []) {
    if (run.waiting) return void run.waiting.push(...lines)
    run.waiting = [...lines]
    try {
      const answer = await this.fetchApi(`${RUNS}/${run.id}`)
      if (answer.ok) run.take(await answer.json())
      else if (answer.status === 404 && run.isRunning) run.state = "gone"
    } catch {
      // The server does not answer; ComfyUI says so, and `refresh` asks again.
    }
    for (const line of run.waiting) run.add(line)
    run.waiting = null
    if (this.runs.get(node) === run) this.changed(node, run)
  }
}
