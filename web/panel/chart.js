// The chart of a run, drawn by uPlot: losses on the left axis, the learning rate on the right one, marks along the bottom.
//
// It draws when `show` is called and while the pointer is over it, and at no other time.

import uPlot from "../vendor/uPlot/uPlot.esm.js"
import { between, merged, smoothed } from "./data.js"

const COLORS = { loss: "#5b9dff", rate: "#a0a0a0", heldOut: "#ff8f5c", base: "#ff8f5c" }
const CONCEPTS = ["#5cc98b", "#d98be0", "#e0c34f", "#4fc4d9", "#e07a8c", "#9a9bf0", "#a8b86a", "#d0a080"]
const MARKS = { checkpoint: "#5cc98b", sample: "#ffbe5c" }
const KEEPS = [0.02, 0.98] // of all values, when outliers are clipped
const NEAR = 6 // pixels from a mark
const LEAST_DRAG = 4 // pixels

const short = (value) => (value === null || value === undefined ? "–" : Number(value.toPrecision(4)).toString())

// What the chart can show of a run: [{id, label, color, on, …}], each with the values `raw` of the curve's points, or
// with `held`, which takes its value from a line of held-out losses.
export function seriesOf(run, columns) {
  const concepts = Object.keys(columns.concepts)
  const held = [...new Set(run.heldOut.flatMap((line) => Object.keys(line.concepts ?? {})))]
  const names = [...new Set([...concepts, ...held])]
  const colorOf = (name) => CONCEPTS[names.indexOf(name) % CONCEPTS.length]
  const found = [
    { id: "loss", label: "loss", color: COLORS.loss, alpha: 0.35, on: true, raw: columns.loss },
    {
      id: "smoothed", label: "smoothed", color: COLORS.loss, width: 2, on: true, raw: columns.loss, smooth: true,
      counts: columns.count,
    },
    { id: "rate", label: "learning rate", color: COLORS.rate, scale: "rate", on: true, raw: columns.rate },
    ...(concepts.length > 1 ? concepts : []).map((name) => ({
      id: `concept ${name}`, label: name, color: colorOf(name), on: false, raw: columns.concepts[name],
      smooth: true, counts: columns.counts[name],
    })),
  ]
  if (run.heldOut.length)
    found.push(
      {
        id: "held out", label: "held-out", color: COLORS.heldOut, width: 2, on: true, points: true,
        held: (line) => line.loss,
      },
      { id: "base", label: "base model", color: COLORS.base, dash: [5, 4], on: true, held: (line) => line.base },
      ...(held.length > 1 ? held : []).map((name) => ({
        id: `held out ${name}`, label: `held-out ${name}`, color: colorOf(name), dash: [2, 3], on: false, points: true,
        held: (line) => line.concepts?.[name]?.loss ?? null,
      })),
    )
  return found
}

export class Chart {
  // box: the element it fills. hovered: called with a line of text, or "".
  constructor(box, hovered) {
    this.box = box
    this.hovered = hovered
    this.zoom = null // [first, last] step, if the user chose some
    this.plot = null
    this.shape = "" // what the plot was built for
  }

  // Draws a run. options: {log, clip, smoothing, isOn(series)}.
  show(run, options) {
    this.run = run
    this.options = options
    const columns = run.curve.columns()
    const merge = merged(columns, run.heldOut)
    this.series = seriesOf(run, columns)
    const shown = this.series.map((series) => {
      if (series.held) return merge.heldOut(series.held)
      return merge.curve(series.smooth ? smoothed(series.raw, options.smoothing, series.counts) : series.raw)
    })
    this.data = [merge.step, ...shown]
    const { clientWidth: width, clientHeight: height } = this.box
    if (!width || !height || !merge.step.length) return this.clear()
    this.#theme()
    const shape = JSON.stringify([options.log, this.series.map((series) => series.id), run.id])
    if (shape !== this.shape) this.#build(width, height)
    this.shape = shape
    this.plot.batch(() => {
      if (this.plot.width !== width || this.plot.height !== height) this.plot.setSize({ width, height })
      this.series.forEach((series, at) => {
        const on = options.isOn(series)
        if (this.plot.series[at + 1].show !== on) this.plot.setSeries(at + 1, { show: on })
      })
      this.plot.setData(this.data, false)
      this.plot.setScale("x", this.#range())
      this.plot.redraw(false, true) // colours of the theme and marks
    })
  }

  clear() {
    this.plot?.destroy()
    this.plot = null
    this.shape = ""
    this.hovered("")
  }

  end() {
    this.clear()
  }

  #range() {
    const steps = this.data[0]
    const [first, last] = this.zoom ?? [steps[0], steps.at(-1)]
    return first < last ? { min: first, max: last } : { min: first - 1, max: first + 1 }
  }

  #theme() {
    const style = getComputedStyle(this.box)
    this.text = style.color
    this.grid = style.getPropertyValue("--border-color").trim() || "#8884"
  }

  #build(width, height) {
    this.plot?.destroy()
    const axis = (more) => ({
      stroke: () => this.text, font: "11px system-ui", grid: { stroke: () => this.grid, width: 0.5 },
      ticks: { stroke: () => this.grid, width: 0.5, size: 4 }, gap: 3, ...more,
    })
    this.plot = new uPlot(
      {
        width,
        height,
        padding: [8, 4, 0, 0],
        legend: { show: false },
        cursor: { drag: { x: true, y: false, setScale: false }, bind: this.#pointer(), points: { size: 5 } },
        select: { show: true },
        scales: {
          x: { time: false, auto: false },
          y: { distr: this.options.log ? 3 : 1, range: (_, low, high) => this.#losses(low, high) },
          rate: { range: (_, low, high) => [0, (high || 1) * 1.05] },
        },
        axes: [
          axis({ size: 24, space: 60, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5] }),
          axis({ scale: "y", size: 46, space: 26, values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : short(tick))) }),
          axis({
            scale: "rate", side: 1, size: 46, space: 34, grid: { show: false },
            values: (_, ticks) => ticks.map((tick) => (tick ? tick.toExponential(0) : "0")),
          }),
        ],
        series: [{}, ...this.series.map((series) => this.#line(series))],
        hooks: {
          draw: [(plot) => this.#drawMarks(plot)],
          setCursor: [(plot) => this.hovered(this.#hover(plot))],
          setSelect: [(plot) => this.#zoomTo(plot)],
        },
      },
      this.data,
      this.box,
    )
  }

  #line({ color, alpha = 1, width = 1, dash, scale = "y", points = false, ...series }) {
    return {
      scale, stroke: color, alpha, width, dash, show: this.options.isOn(series), spanGaps: true,
      points: { show: (plot) => points || plot.data[0].length < 2, size: 5, fill: color },
    }
  }

  // ComfyUI scales and moves what a node holds, which uPlot does not expect of its box.
  #pointer() {
    const corrected = (plot, _, handle) => (event) => {
      if (event.button !== 0) return null
      plot.syncRect(false)
      const { left, top, width } = plot.over.getBoundingClientRect()
      const scale = width / plot.over.offsetWidth || 1
      return handle(new MouseEvent(event.type, {
        clientX: left + (event.clientX - left) / scale, clientY: top + (event.clientY - top) / scale,
        movementX: event.movementX, movementY: event.movementY, button: 0, buttons: event.buttons,
      }))
    }
    return {
      mousedown: corrected, mousemove: corrected, mouseup: corrected,
      dblclick: () => () => {
        this.zoom = null
        this.plot.setScale("x", this.#range())
      },
    }
  }

  #zoomTo(plot) {
    const { left, width } = plot.select
    if (!width) return
    if (width >= LEAST_DRAG) {
      this.zoom = [plot.posToVal(left, "x"), plot.posToVal(left + width, "x")]
      plot.setScale("x", this.#range())
    }
    plot.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false)
  }

  // The range of the left axis: of what is seen, without outliers if they are clipped.
  #losses(low, high) {
    if (low === null || low === undefined) return [0.01, 1]
    const { log, clip, isOn } = this.options
    if (clip) {
      const { min, max } = this.#range()
      const inside = (_, at) => this.data[0][at] >= min && this.data[0][at] <= max
      const seen = this.series.flatMap((series, at) =>
        series.scale || !isOn(series) ? [] : [between(this.data[at + 1].filter(inside), ...KEEPS)])
      const ends = seen.filter(Boolean)
      if (ends.length) {
        low = Math.min(...ends.map(([least]) => least))
        high = Math.max(...ends.map(([, most]) => most))
      }
    }
    if (log) return [Math.max(low, 1e-8) / 1.1, Math.max(high, 1e-8) * 1.1]
    const room = (high - low) * 0.05 || Math.abs(high) * 0.05 || 0.05
    return [low >= 0 ? Math.max(0, low - room) : low - room, high + room]
  }

  #marks() {
    const { checkpoints, samples } = this.run
    return [
      ...checkpoints.map((line) => ({ step: line.step, kind: "checkpoint", text: `checkpoint ${line.file}` })),
      ...samples.map((line) => ({ step: line.step, kind: "sample", text: `samples of step ${line.step}` })),
    ]
  }

  #drawMarks(plot) {
    const { ctx, bbox } = plot
    const unit = uPlot.pxRatio
    const bottom = bbox.top + bbox.height
    ctx.save()
    for (const { step, kind } of this.#marks()) {
      const x = plot.valToPos(step, "x", true)
      if (x < bbox.left - 1 || x > bbox.left + bbox.width + 1) continue
      ctx.fillStyle = MARKS[kind]
      ctx.beginPath()
      if (kind === "sample") ctx.arc(x, bottom - 14 * unit, 3.5 * unit, 0, 2 * Math.PI)
      else {
        ctx.moveTo(x, bottom - 9 * unit)
        ctx.lineTo(x - 4 * unit, bottom - unit)
        ctx.lineTo(x + 4 * unit, bottom - unit)
      }
      ctx.fill()
    }
    ctx.restore()
  }

  #hover(plot) {
    const { idx, left } = plot.cursor
    if (idx === null || idx === undefined || left < 0) return ""
    const near = this.#marks().filter(({ step }) => Math.abs(plot.valToPos(step, "x") - left) <= NEAR)
    const values = this.series.flatMap((series, at) => {
      const value = this.data[at + 1][idx]
      return this.options.isOn(series) && value !== null ? [`${series.label} ${short(value)}`] : []
    })
    // Marks first, as the line may be too short for all.
    return [`step ${this.data[0][idx]}`, ...near.map(({ text }) => text), ...values].join(" · ")
  }
}
