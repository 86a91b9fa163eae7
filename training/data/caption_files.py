"""The text of captions on disk: text files in whatever encoding, .json files, and tables of many captions."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..disk import require_regular
from ..errors import UnreadableImage, UserError
from ..events import counted
from .words import MOST_CHARACTERS, is_json

_FIELDS = ("caption", "text")  # of a .json file or a table; the first one that holds text
_FILE = "file_name"
_MOST_BYTES = 4 * MOST_CHARACTERS + len(codecs.BOM_UTF8)  # the rest of a longer caption is not read
_MOST_JSON = 1 << 20  # bytes of a .json file
_MOST_TABLE = 1 << 28  # bytes
_BOMS = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}

# Encodings that captions are written in besides Unicode, the most common first, by the name people know.
_ENCODINGS = {
    "gb18030": "GBK", "cp932": "Shift-JIS", "big5": "Big5", "cp949": "EUC-KR", "euc_jp": "EUC-JP",
    "cp1252": "Windows-1252", "cp1250": "Windows-1250", "cp1251": "Windows-1251", "cp1253": "Windows-1253",
}  # fmt: skip
_LIKELY = 0.8  # share of everyday characters from which an encoding is taken
_WESTERN_SIGNS = "‘’“”„–—…•·°©®™«»¿¡€£´"
# Quotes, dashes and dots of Windows where a text has them: ’ after a letter, “ before one.
_CURLY = re.compile(
    rb"(?<=[A-Za-z])\x92|(?<![A-Za-z])[\x91\x93](?=[A-Za-z])|\x94(?![A-Za-z])|(?<= )[\x96\x97](?= )|\x85(?![A-Za-z])"
)
_WORD = re.compile(r"[^\W\d_]+")


def read_caption(path: Path) -> str | bytes | None:
    """Read a caption file.

    Returns:
        As `caption_of`; or its bytes if they are not UTF-8, for `decode_all`.

    Raises:
        UnreadableImage: The caption is too long, so its picture cannot be used.
        UserError: The file cannot be opened.
    """
    most = _MOST_JSON if _is_json_file(path) else _MOST_BYTES
    try:
        require_regular(path)
        with path.open("rb") as file:
            data = file.read(most + 1)
    except PermissionError as error:
        raise UserError(f"The caption {path} cannot be opened ({error.strerror}). Change its permissions.") from error
    except OSError as error:
        raise UserError(f"The caption {path} cannot be read ({error.strerror}). Replace or remove it.") from error
    if len(data) > most:
        if _is_json_file(path):
            return None
        raise _too_long(path)
    text = _utf8(data)
    return data if text is None else caption_of(path, text)


def caption_of(path: Path, text: str) -> str | None:
    """The caption in the text of a caption file; None for a .json file that holds none.

    Raises:
        UnreadableImage: The caption is too long.
    """
    if not _is_json_file(path):
        return tidy(text, path)
    try:
        found = _field(json.loads(text))
    except (ValueError, RecursionError):
        return None
    return None if found is None else tidy(found, path)


def tidy(text: str, path: Path) -> str:
    """A caption's lines without empty ones; kohya takes the first line and silently drops the rest. JSON stays whole.

    Raises:
        UnreadableImage: The caption is too long.
    """
    if len(text) > MOST_CHARACTERS:
        raise _too_long(path)
    if is_json(text):
        return text.strip()
    return "\n".join(line.strip() for line in text.splitlines() if line.strip())


def read_table(path: Path) -> tuple[dict[str, str], int, str]:
    """Read a metadata.jsonl or metadata.csv of Hugging Face's imagefolder.

    Returns:
        Captions, not yet tidy, by the picture's path relative to the table; the number of rows that are none; and a
        sentence on its encoding, if it is not UTF-8. A table that cannot be read has neither captions nor rows.
    """
    try:
        require_regular(path)
        data = path.read_bytes() if path.stat().st_size <= _MOST_TABLE else b""
    except OSError:
        return {}, 0, ""
    text, sentences = _utf8(data), [""]
    if text is None:
        try:
            decoded, sentences = decode_all({path: data}, "table")
        except UserError:
            return {}, 0, ""
        text = decoded[path]
    captions: dict[str, str] = {}
    wrong = 0
    for row in _rows(text, path.suffix.lower() == ".csv"):
        caption = _field(row)
        if caption is None or not isinstance(row.get(_FILE), str):
            wrong += 1
        else:
            captions[row[_FILE].replace("\\", "/")] = caption
    return captions, wrong, sentences[0]


def decode_all(files: Mapping[Path, bytes], noun: str = "caption") -> tuple[dict[Path, str], list[str]]:
    """Decode files that are not UTF-8.

    Files of one folder usually share an encoding, and a short text says little. So those of a folder are tried together
    first, and each that does not fit alone.

    Args:
        files: The bytes of each file.
        noun: What they are.

    Returns:
        The text of each file, and one sentence for each encoding.

    Raises:
        UserError: The encoding of some files cannot be told. All of them are listed.
    """
    names: dict[Path, str] = {}
    folders: dict[Path, dict[Path, bytes]] = {}
    for path, data in files.items():
        if name := _unicode(data):
            names[path] = name
        elif not _is_damaged_utf8(data):
            folders.setdefault(path.parent, {})[path] = data
    for others in folders.values():
        shared = _detect(b"\n".join(others.values()))
        for path, data in others.items():
            name = shared if shared and _share(data, shared) >= _LIKELY else _detect(data)
            if name:
                names[path] = name
    unknown = [path for path in files if path not in names]
    if unknown:
        raise UserError(
            f"The encoding of {counted(len(unknown), noun)} cannot be told. Save as UTF-8:\n"
            + "\n".join(map(str, unknown))
        )
    return {path: data.decode(names[path]).lstrip("\ufeff") for path, data in files.items()}, _told(names, noun)


def _told(names: Mapping[Path, str], noun: str) -> list[str]:
    """One sentence for each encoding in use."""
    sentences = []
    for name in dict.fromkeys(names.values()):
        paths = [path for path, its in names.items() if its == name]
        known = _ENCODINGS.get(name, "UTF-16" if "16" in name else "UTF-32")
        was, them = ("was", "it looks") if len(paths) == 1 else ("were", "they look")
        save = "it" if len(paths) == 1 else "them"
        sentences.append(
            f"{counted(len(paths), noun)} {was} read as {known} ({paths[0].name}{', …' if len(paths) > 1 else ''}). "
            f"If {them} wrong, save {save} as UTF-8."
        )
    return sentences


def _utf8(data: bytes) -> str | None:
    """A text in UTF-8; None if it is none. UTF-16 without its mark decodes too, with a zero after every letter."""
    try:
        text = data.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


def _is_json_file(path: Path) -> bool:
    return path.suffix.lower() == ".json"


def _unicode(data: bytes) -> str | None:
    """The encoding of UTF-16 or UTF-32, from its byte order mark or the zero bytes of Latin letters."""
    guess = next((name for bom, name in _BOMS.items() if data.startswith(bom)), None)
    is_marked = guess is not None
    if guess is None and b"\0" in data:
        guess = "utf-16-le" if data[1::2].count(0) >= data[::2].count(0) else "utf-16-be"
    if guess is None:
        return None
    try:
        text = data.decode(guess)
    except UnicodeDecodeError:
        return None
    # A tenth of all pairs of bytes are private characters: a file that is no text has some.
    is_text = "\0" not in text and (is_marked or not any("\ue000" <= letter <= "\uf8ff" for letter in text))
    return guess if is_text else None


def _is_damaged_utf8(data: bytes) -> bool:
    """Whether most characters are UTF-8: such a text is damaged, and every other encoding makes gibberish of it."""
    if data.startswith(codecs.BOM_UTF8):
        return True
    text = data.decode("utf-8", "replace")
    wrong = text.count("\ufffd")
    return sum(character > "\x7f" for character in text) - wrong > wrong


def _detect(data: bytes) -> str | None:
    """The encoding of some text, or None if it cannot be told.

    charset-normalizer leaves out encodings that make a mess. Of the others it prefers some by chance if a text is
    short. So the one with the most everyday characters is taken.
    """
    if _CURLY.sub(b"", data).isascii():
        return "cp1252"  # Shift-JIS takes such a sign for half a letter
    try:
        from charset_normalizer import from_bytes  # most hosts have it, and few captions need it
    except ImportError:
        return None
    sure = {
        name: match.coherence  # how much the text is like one of its languages, 0 for a short text
        for match in from_bytes(data, cp_isolation=list(_ENCODINGS))
        for name in (match.encoding, *match.could_be_from_charset)
    }
    shares = {name: _share(data, name) for name in _ENCODINGS if name in sure}
    likely = [name for name, share in shares.items() if share >= _LIKELY]
    if likely:
        return max(likely, key=lambda name: (shares[name], sure[name]))
    # Some short texts with many accents look like a mess to it.
    is_plain = 2 * sum(byte < 128 for byte in data) > len(data)
    return "cp1252" if is_plain and _share(data, "cp1252") == 1 else None


def _share(data: bytes, encoding: str) -> float:
    """As `_everyday`, of bytes; 0 if they are not in this encoding."""
    try:
        return _everyday(data.decode(encoding), encoding)
    except UnicodeDecodeError:
        return 0.0


def _everyday(text: str, encoding: str) -> float:
    """The share of a text's characters beyond ASCII that are common in the encoding's language, 0 to 1."""
    rule = _WORDS.get(encoding)
    if rule is None:
        beyond = [character for character in text if character > "\x7f"]
        # Of these languages only Korean has spaces between its words.
        spaces = 0 if encoding == "cp949" else len(re.findall(r"[^\x00-\x7f] (?=[^\x00-\x7f])", text))
        common = sum(map(_COMMON[encoding], beyond))
        return common / (len(beyond) + spaces) if beyond else 0.0
    beyond_count = sum(character > "\x7f" for character in text)
    letters = sum(len(re.findall(r"[^\x00-\x7f]", word)) for word in _WORD.findall(text) if rule(word))
    return (letters + sum(text.count(sign) for sign in _WESTERN_SIGNS)) / beyond_count if beyond_count else 0.0


def _is_western(word: str) -> bool:
    """Whether a word has a plain Latin letter, or is a single letter such as `à`."""
    return len(word) == 1 or any(map(str.isascii, word))


def _of_letters(first: str, last: str) -> Callable[[str], bool]:
    """Tell words of one script, with capitals only at the start."""

    def is_of_script(word: str) -> bool:
        return all(first <= letter <= last for letter in word) and not word[1:].isupper()

    return is_of_script


_WORDS: dict[str, Callable[[str], bool]] = {
    "cp1252": _is_western, "cp1250": _is_western, "cp1251": _of_letters("\u0400", "\u04ff"),
    "cp1253": _of_letters("\u0370", "\u03ff"),
}  # fmt: skip


def _leads(encoding: str, *ranges: tuple[int, int]) -> Callable[[str], bool]:
    """Tell characters by their first byte: national standards put the everyday ones first."""

    def is_common(character: str) -> bool:
        try:
            lead = character.encode(encoding)
        except UnicodeEncodeError:
            return False
        return len(lead) == 2 and any(low <= lead[0] <= high for low, high in ranges)

    return is_common


_JAPANESE = _leads("euc_jp", (0xA1, 0xA5), (0xB0, 0xCF))  # signs and kana, level 1
_COMMON: dict[str, Callable[[str], bool]] = {
    "gb18030": _leads("gb2312", (0xA1, 0xA3), (0xB0, 0xD7)),  # signs, level 1
    "cp932": _JAPANESE,
    "big5": _leads("big5", (0xA1, 0xA3), (0xA4, 0xC6)),
    "cp949": _leads("euc_kr", (0xA1, 0xA3), (0xB0, 0xC8)),  # signs, syllables
    "euc_jp": _JAPANESE,
}


def _rows(text: str, is_csv: bool) -> Iterator[Any]:
    """The rows of a table; None for one that is damaged."""
    if is_csv:
        try:
            yield from csv.DictReader(io.StringIO(text))
        except csv.Error:
            yield None
        return
    for line in text.split("\n"):
        try:
            if line.strip():
                yield json.loads(line)
        except (ValueError, RecursionError):
            yield None


def _field(parsed: Any) -> str | None:
    """The caption in a parsed object. A list of strings is a caption of several lines."""
    if not isinstance(parsed, dict):
        return None
    for name in _FIELDS:
        found = parsed.get(name)
        if isinstance(found, list) and found and all(isinstance(line, str) for line in found):
            found = "\n".join(found)
        if isinstance(found, str):
            return found
    return None


def _too_long(path: Path) -> UnreadableImage:
    return UnreadableImage(
        f"The caption {path} has more than {MOST_CHARACTERS:,} characters, so its picture was left out. Shorten it."
    )
