// Elements of the page in one call.

export function make(kind, props = {}, ...children) {
  const { class: css, data, ...others } = props
  const made = Object.assign(document.createElement(kind), others)
  if (css) made.className = css
  Object.assign(made.dataset, data)
  made.append(...children)
  return made
}
