// The meaning of each key in the gallery.

const MOVES = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "PageUp", "PageDown", "Home", "End"]

// where: "caption", "field" (another input), "grid", or "" for the rest of the gallery.
// Returns [action, argument], or null if the gallery does not use the key.
export function meaning({ key, shiftKey, ctrlKey, metaKey }, where) {
  const ctrl = ctrlKey || metaKey
  if (where === "caption") {
    if (key === "Tab") return ["next", shiftKey ? -1 : 1]
    if (key === "Enter" && ctrl) return ["keep"]
    if (key === "Escape") return ["forget"]
    return null
  }
  if (where === "field") return key === "Escape" ? ["leave"] : null
  if (ctrl && key.toLowerCase() === "z") return [shiftKey ? "redo" : "undo"]
  if (ctrl && key.toLowerCase() === "y") return ["redo"]
  if ((ctrl && key === "f") || key === "/") return ["search"]
  if (ctrl || where !== "grid") return null
  if (MOVES.includes(key)) return ["move", key]
  if (key === "Enter") return ["write"]
  if (key === "x" || key === "Delete") return ["toggle"]
  return null
}
