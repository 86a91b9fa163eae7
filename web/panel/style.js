// The style of the training panel, in the colours of ComfyUI's theme.

export const LEAST_HEIGHT = 500 // pixels
export const WIDTH = 480

export const STYLE = `
.lwb-panel { display: flex; flex-direction: column; gap: 5px; width: 100%; height: 100%; padding: 6px 8px;
  box-sizing: border-box; contain: layout size; overflow: hidden; border-radius: 6px; text-align: left;
  font: 12px/1.35 system-ui, sans-serif; color: var(--fg-color, #ddd); background: var(--comfy-menu-bg, #222) }
.lwb-panel * { box-sizing: border-box }
/* The Vue renderer gives a widget its least height, the canvas all the room of the node. */
[data-node-id] .lwb-panel { min-height: ${LEAST_HEIGHT}px }
[data-node-id]:has(.lwb-panel) { min-width: 400px }
/* The Vue renderer of older front ends cuts labels at 80 pixels. */
[data-node-id]:has(.lwb-panel) .lg-node-widget .w-20 { width: 150px }
.lwb-panel [hidden], .lwb-large [hidden] { display: none !important }
.lwb-panel button { font: inherit; color: inherit; border-radius: 4px; background: var(--comfy-input-bg, #333);
  border: 1px solid var(--border-color, #555); padding: 2px 7px; cursor: pointer; white-space: nowrap }
.lwb-panel button:disabled { opacity: .45; cursor: default }
.lwb-panel button.is-dangerous { border-color: #d9534f }
.lwb-panel :focus-visible { outline: 2px solid #5b9dff; outline-offset: -1px }
.lwb-panel a { color: inherit }
.lwb-row { display: flex; flex: none; flex-wrap: wrap; gap: 3px 10px; align-items: center; min-height: 20px }
.lwb-row.is-tight { gap: 4px }
.lwb-row label { display: flex; gap: 4px; align-items: center; white-space: nowrap; cursor: pointer }
.lwb-row input { margin: 0; accent-color: #5b9dff }
.lwb-row input[type=range] { width: 90px }
.lwb-row .lwb-last { margin-left: auto }
.lwb-head b { font-weight: 600; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; min-width: 0 }
.lwb-head { flex-wrap: nowrap }
.lwb-state { opacity: .8; white-space: nowrap }
.lwb-facts { font-variant-numeric: tabular-nums; gap: 2px 12px }
.lwb-facts span { white-space: nowrap }
.lwb-facts i { font-style: normal; opacity: .65 }
.lwb-keys { max-height: 48px; overflow-y: auto }
.lwb-panel .lwb-key { padding: 0 6px; border-radius: 9px; opacity: .45 }
.lwb-panel .lwb-key[aria-pressed=true] { opacity: 1 }
.lwb-key::before { content: ""; display: inline-block; width: 9px; height: 9px; margin-right: 5px; border-radius: 50%;
  background: var(--line) }
.lwb-chart { position: relative; flex: 1 1 0; min-height: 110px; overflow: hidden; border-radius: 4px;
  border: 1px solid var(--border-color, #444) }
.lwb-chart .uplot { position: absolute; left: 0; top: 0; line-height: 1 }
.lwb-chart .u-select { background: #5b9dff44 }
.lwb-note { position: absolute; inset: 0; display: flex; align-items: center; justify-content: center; padding: 8px;
  text-align: center; opacity: .8; pointer-events: none }
.lwb-hover { min-height: 17px; flex: none; overflow: hidden; white-space: nowrap; text-overflow: ellipsis; opacity: .9;
  font-variant-numeric: tabular-nums }
.lwb-hints { flex: none; max-height: 50px; overflow-y: auto; overscroll-behavior: contain }
.lwb-hints p { margin: 0 0 2px; padding-left: 7px; border-left: 3px solid #ffbe5c; overflow-wrap: anywhere }
.lwb-said { flex: none; color: #f0897f; overflow-wrap: anywhere }
.lwb-pending { flex: none; opacity: .8 }
.lwb-samples { flex: none; display: flex; flex-direction: column; gap: 3px }
.lwb-strip { display: flex; gap: 4px; height: 84px; overflow-x: auto; overflow-y: hidden; overscroll-behavior: contain }
.lwb-strip img { display: block; height: 100%; min-width: 40px; border-radius: 4px; cursor: zoom-in; background: #0003 }
.lwb-panel .lwb-strip button { flex: none; height: 100%; padding: 0; border: none; background: none }
.lwb-samples .lwb-row { flex-wrap: nowrap }
.lwb-samples input[type=range] { flex: 1 1 0; min-width: 60px; margin: 0 }
.lwb-samples output { white-space: nowrap; font-variant-numeric: tabular-nums }
.lwb-large { position: fixed; inset: 0; z-index: 10000; display: flex; flex-direction: column; gap: 10px;
  align-items: center; justify-content: center; padding: 24px; box-sizing: border-box; background: #000d; color: #eee;
  font: 14px/1.4 system-ui, sans-serif; cursor: zoom-out; outline: none }
.lwb-large img { min-height: 0; max-width: 100%; flex: 0 1 auto; object-fit: contain }
.lwb-large p { margin: 0; max-width: 100ch; text-align: center; overflow-wrap: anywhere; cursor: text; user-select: text }
`
