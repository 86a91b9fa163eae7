// The style of the gallery, in the colours of ComfyUI's theme.

export const CARD = { width: 148, height: 196, gap: 8 } // pixels

export const STYLE = `
.lwb { display: flex; flex-direction: column; gap: 6px; width: 100%; height: 100%; min-height: 400px; padding: 6px;
  box-sizing: border-box; contain: layout size; font: 12px/1.35 system-ui, sans-serif; color: var(--fg-color, #ddd);
  background: var(--comfy-menu-bg, #222); border-radius: 6px; outline: none; overflow: hidden; text-align: left }
.lwb * { box-sizing: border-box }
/* The Vue renderer gives a widget its least height, the canvas all the room of the node. */
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
/* A long file name loses its middle: its first part shrinks, the rest stays. */
.lwb-name { display: flex; white-space: pre; opacity: .75; flex: none }
.lwb-name span:first-child { overflow: hidden; text-overflow: ellipsis }
.lwb-name span:last-child { flex: none }
.lwb-theirs { flex: none; max-height: 84px; overflow-y: auto; color: #e0a33a; overflow-wrap: anywhere; white-space: pre-line }
.lwb-side textarea.is-draft { border-color: #e0a33a }
.lwb-side textarea { flex: 1 1 0; min-height: 72px; resize: none; width: 100% }
.lwb-look { flex: 0 1 132px; min-height: 40px; width: 100%; object-fit: contain; border-radius: 4px; background: #0003 }
.lwb-tags { flex: 1.4 1 0; min-height: 60px; overflow-y: auto; overscroll-behavior: contain; border-radius: 4px;
  background: var(--comfy-input-bg, #2a2a2a); padding: 2px }
.lwb-tag { display: flex; gap: 3px; align-items: center; padding: 1px 3px; border-radius: 3px }
.lwb-tag.is-chosen { background: #5b9dff44 }
.lwb-tag > span { flex: 1 1 0; min-width: 0; overflow: hidden; overflow-wrap: anywhere; cursor: pointer;
  display: -webkit-box; -webkit-line-clamp: 4; -webkit-box-orient: vertical }
.lwb-tag button { padding: 0 4px; border: none; background: none; opacity: .5 }
.lwb-tag button:hover, .lwb-tag button:focus-visible { opacity: 1 }
.lwb-tag input { flex: 1 1 0 }
.lwb-note { margin: auto; padding: 16px; text-align: center; opacity: .8 }
.lwb-said { min-height: 1.35em; max-height: 5.4em; flex: none; overflow-y: auto; overflow-wrap: anywhere }
`
