// Operations on captions: pure functions over text. A caption is a sentence, or tags separated by commas. Each line of a
// caption is one caption of its own for the picture, and is edited separately. JSON has no tags, and only replaceText
// changes it (see is_json in training/data/words.py).

const tagsOf = (line) =>
  line
    .split(/[,，、]/)
    .map((tag) => tag.trim())
    .filter(Boolean)

function isJson(text) {
  if (!/^\s*[{[]/.test(text)) return false
  // Python's parser takes line breaks inside strings, and ComfyUI removes the backslash of an escaped parenthesis.
  const plain = text.replace(/\\([()])/g, "$1").replace(/[\u0000-\u001f]/g, " ")
  try {
    JSON.parse(plain)
    return true
  } catch {
    return false
  }
}

export const splitTags = (caption) => (isJson(caption) ? [] : caption.split("\n").flatMap(tagsOf))

const same = (one, other) => one.toLowerCase() === other.toLowerCase()

export const hasTag = (caption, tag) => splitTags(caption).some((other) => same(other, tag))

const eachLine = (caption, change) => (isJson(caption) ? caption : caption.split("\n").map(change).join("\n"))

// Changes the tags of the lines that have the tag.
const where = (caption, tag, change) =>
  eachLine(caption, (line) => (tagsOf(line).some((other) => same(other, tag)) ? change(tagsOf(line)).join(", ") : line))

export function removeTag(caption, tag) {
  return where(caption, tag, (tags) => tags.filter((other) => !same(other, tag)))
}

// A tag renamed to one that exists is removed, so that no tag occurs twice.
export function renameTag(caption, tag, name) {
  return where(caption, tag, (tags) => {
    const renamed = tags.map((other) => (same(other, tag) ? name.trim() : other))
    return renamed.filter((other, at) => other && renamed.findIndex((first) => same(first, other)) === at)
  })
}

export function addInFront(caption, text) {
  return eachLine(caption, (line) => (line ? `${text}, ${line}` : text))
}

export function addAtEnd(caption, text) {
  return eachLine(caption, (line) => (line ? `${line}, ${text}` : text))
}

export function replaceText(caption, text, replacement) {
  return text ? caption.split(text).join(replacement) : caption
}

// The number of captions with each tag, the most frequent first: [["a hat", 12], …].
export function tagCounts(captions) {
  const counts = new Map()
  for (const caption of captions)
    for (const tag of new Set(splitTags(caption))) counts.set(tag, (counts.get(tag) ?? 0) + 1)
  return [...counts].sort((one, other) => other[1] - one[1] || (one[0] < other[0] ? -1 : 1))
}
