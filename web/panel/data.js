// What a page knows of one run: its curve, thinned as the server thins it, and all other lines of its log.
//
// Nothing here touches the page.

const MOST = 2000 // points, as in training/run/curve.py

// The running means that a curve is made of: [sum, number].
const total = (mean, number) => [mean * number, number]
const joined = (a, b) => (a && b ? [a[0] + b[0], a[1] + b[1]] : (a ?? b))
const joinedConcepts = (a, b) =>
  Object.fromEntries([...new Set([...Object.keys(a), ...Object.keys(b)])].map((name) => [name, joined(a[name], b[name])]))

export class Curve {
  // columns: {stride, step, loss, rate, count, concepts, counts} as the server answers; none for a run that begins.
  constructor(columns, most = MOST) {
    this.most = most
    this.stride = columns?.stride ?? 1
    const concepts = Object.entries(columns?.concepts ?? {})
    this.points = (columns?.step ?? []).map((step, at) => ({
      step,
      rate: columns.rate[at],
      loss: total(columns.loss[at], columns.count[at]),
      concepts: Object.fromEntries(
        concepts.filter(([, values]) => values[at] !== null)
          .map(([name, values]) => [name, total(values[at], columns.counts[name][at])]),
      ),
    }))
  }

  get lastStep() {
    return this.points.at(-1)?.step ?? 0
  }

  // Steps come in order; a step that comes again replaces what was after it.
  add({ step, loss, rate, concepts }) {
    while (this.lastStep >= step && this.points.length) this.points.pop()
    const means = Object.fromEntries(Object.entries(concepts ?? {}).map(([name, value]) => [name, [value, 1]]))
    const point = { step, rate, loss: [loss, 1], concepts: means }
    const last = this.points.at(-1)
    if (last && last.loss[1] < this.stride) this.points[this.points.length - 1] = Curve.#join(last, point)
    else this.points.push(point)
    if (this.points.length <= this.most) return
    this.stride *= 2
    const pairs = []
    for (let at = 0; at < this.points.length; at += 2)
      pairs.push(at + 1 < this.points.length ? Curve.#join(this.points[at], this.points[at + 1]) : this.points[at])
    this.points = pairs
  }

  static #join(a, b) {
    const concepts = joinedConcepts(a.concepts, b.concepts)
    return { step: b.step, rate: b.rate, loss: joined(a.loss, b.loss), concepts }
  }

  // Columns of one length for a chart, as `Curve.columns` of the server; null where a concept had no picture.
  columns() {
    const names = [...new Set(this.points.flatMap((point) => Object.keys(point.concepts)))]
    const mean = (value) => (value ? value[0] / value[1] : null)
    const byName = (each) =>
      Object.fromEntries(names.map((name) => [name, this.points.map(({ concepts }) => each(concepts[name]))]))
    return {
      step: this.points.map((point) => point.step),
      loss: this.points.map((point) => mean(point.loss)),
      rate: this.points.map((point) => point.rate),
      count: this.points.map((point) => point.loss[1]),
      concepts: byName(mean),
      counts: byName((value) => value?.[1] ?? 0),
    }
  }
}

export class Run {
  constructor(id, most) {
    this.id = id
    this.most = most
    this.take({ state: "running", curve: null, last: {}, lines: [] })
  }

  // Takes the server's whole answer in place of what is known.
  take(answer) {
    const { name, folder, state, curve, last, lines } = answer
    this.name = name ?? this.name ?? ""
    this.folder = folder ?? this.folder ?? "" // below ComfyUI's output folder
    this.state = state
    this.curve = new Curve(curve, this.most)
    this.last = last ?? {}
    this.begin = {}
    this.end = null
    this.memory = {}
    this.checkpoints = []
    this.samples = []
    this.heldOut = []
    this.hints = []
    this.known = new Set() // lines that are not steps
    for (const line of lines) this.add(line)
  }

  get isRunning() {
    return this.state === "running"
  }

  // Whether a step was lost on the way here.
  isAfterGap(line) {
    return line.kind === "step" && this.last.step !== undefined && line.step > this.last.step + 1
  }

  // Adds a line of the log. Returns whether it was new: what the server answers may come once more as an event.
  add(line) {
    if (line.kind === "step") {
      if (line.step <= this.last.step && line.seconds <= this.last.seconds) return false
      this.curve.add(line)
      this.last = line
      return true
    }
    const text = JSON.stringify(line)
    if (this.known.has(text)) return false
    this.known.add(text)
    this.#other(line)
    return true
  }

  #other(line) {
    if (line.kind === "begin") {
      this.begin = line
      this.name = line.name
    } else if (line.kind === "memory") this.memory = line
    else if (line.kind === "checkpoint") this.checkpoints.push(line)
    else if (line.kind === "sample") this.#addSample(line)
    else if (line.kind === "held_out") this.heldOut.push(line)
    else if (line.kind === "hint") this.hints.push(line.text)
    else if (line.kind === "end") {
      this.end = line
      this.state = line.outcome
    }
  }

  // Samples asked for at a step replace those made there before.
  #addSample(line) {
    const at = this.samples.findIndex((sample) => sample.step === line.step)
    if (at >= 0) this.samples[at] = line
    else this.samples.push(line)
  }
}

// An exponential mean without the pull of its first value. weight: 0 (none) to below 1, for one step. counts: the steps
// whose mean each value is; the mean stands for each of them.
export function smoothed(values, weight, counts) {
  let mean = 0
  let share = 0
  return values.map((value, at) => {
    if (value === null || value === undefined) return null
    const kept = weight ** counts[at]
    mean = kept * mean + (1 - kept) * value
    share = kept * share + (1 - kept)
    return mean / share
  })
}

// The values between which a share of all lies: [low, high], or null without values.
export function between(values, low, high) {
  const sorted = values.filter((value) => value !== null && Number.isFinite(value)).sort((a, b) => a - b)
  if (!sorted.length) return null
  const at = (share) => sorted[Math.round(share * (sorted.length - 1))]
  return [at(low), at(high)]
}

// Columns over one list of steps: the curve's, and those at which held-out pictures were measured.
export function merged(columns, heldOut) {
  const steps = [...new Set([...columns.step, ...heldOut.map((line) => line.step)])].sort((a, b) => a - b)
  const spread = (from, values) => {
    const byStep = new Map(from.map((step, at) => [step, values[at]]))
    return steps.map((step) => byStep.get(step) ?? null)
  }
  const measured = heldOut.map((line) => line.step)
  return {
    step: steps,
    curve: (values) => spread(columns.step, values),
    heldOut: spread(measured, heldOut.map((line) => line.loss)),
    base: spread(measured, heldOut.map((line) => line.base)),
  }
}

// A duration for a person: 42 s, 3:05, 1:02:03.
export function clock(seconds) {
  const whole = Math.round(seconds)
  if (whole < 60) return `${whole} s`
  const two = (number) => String(number).padStart(2, "0")
  const minutes = Math.floor(whole / 60)
  if (minutes < 60) return `${minutes}:${two(whole % 60)}`
  return `${Math.floor(minutes / 60)}:${two(minutes % 60)}:${two(whole % 60)}`
}

export function speed(secondsPerStep) {
  if (!(secondsPerStep > 0)) return ""
  return secondsPerStep > 1 ? `${secondsPerStep.toFixed(1)} s/it` : `${(1 / secondsPerStep).toFixed(2)} it/s`
}

export function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB"]
  const at = Math.min(units.length - 1, Math.floor(Math.log2(Math.max(1, bytes)) / 10))
  return `${(bytes / 2 ** (10 * at)).toFixed(at === 3 ? 1 : 0)} ${units[at]}`
}
