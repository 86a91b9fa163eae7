// Creates elements of the page in one call.

export function make(kind, props = {}, ...children) {
  const { class: css, data, ...others } = props
  const made = Object.assign(document.createElement(kind), others)
  if (css) made.className = css
  Object.assign(made.dataset, data)
  made.append(...children)
  return made
}

export function button(textContent, title, act) {
  const made = make("button", { type: "button", textContent, title })
  made.addEventListener("click", act)
  return made
}

export const counted = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`
