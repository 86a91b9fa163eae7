// What can be done to captions: pure functions over text. A caption is a sentence, or tags between commas.

export const splitTags = (caption) =>
  caption
    .split(",")
    .map((tag) => tag.trim())
    .filter(Boolean)

const joinTags = (tags) => tags.join(", ")

const same = (one, other) => one.toLowerCase() === other.toLowerCase()

export const hasTag = (caption, tag) => splitTags(caption).some((other) => same(other, tag))

export function removeTag(caption, tag) {
  return hasTag(caption, tag) ? joinTags(splitTags(caption).filter((other) => !same(other, tag))) : caption
}

// One that gets a name which is there already goes, so that no tag is there twice.
export function renameTag(caption, tag, name) {
  if (!hasTag(caption, tag)) return caption
  const renamed = splitTags(caption).map((other) => (same(other, tag) ? name.trim() : other))
  return joinTags(renamed.filter((other, at) => other && renamed.findIndex((first) => same(first, other)) === at))
}

export function addInFront(caption, text) {
  return caption ? `${text}, ${caption}` : text
}

export function addAtEnd(caption, text) {
  return caption ? `${caption}, ${text}` : text
}

export function replaceText(caption, text, replacement) {
  return text ? caption.split(text).join(replacement) : caption
}

// How many of the captions have each tag, the most frequent first: [["a hat", 12], …].
export function tagCounts(captions) {
  const counts = new Map()
  for (const caption of captions)
    for (const tag of new Set(splitTags(caption))) counts.set(tag, (counts.get(tag) ?? 0) + 1)
  return [...counts].sort((one, other) => other[1] - one[1] || (one[0] < other[0] ? -1 : 1))
}
