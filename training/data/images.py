"""Read pictures from disk as a viewer shows them, and place them in their buckets.

Handles what trainers commonly get wrong: EXIF rotation, transparency, 16-bit grey.
"""

from __future__ import annotations

import importlib
import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError, features

from ..disk import content_hash, require_regular
from ..errors import UnreadableImage, UserError
from ..events import Cancelled
from .dataset import Picture, Placement

IMAGE_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".avif", ".tif", ".tiff", ".gif", ".apng",
)  # fmt: skip

# Suffixes that Pillow reads with a plug-in, which need not be installed, by the package that has it.
PLUGIN_SUFFIXES = {
    ".heic": "pillow-heif", ".heif": "pillow-heif", ".hif": "pillow-heif", ".jxl": "pillow-jxl-plugin",
}  # fmt: skip
_PLUGINS = {"pillow-heif": ("pillow_heif", "HEIF"), "pillow-jxl-plugin": ("pillow_jxl", "JXL")}

# Formats that are decoded, whatever a file's suffix says. A closed list, because Pillow starts Ghostscript for an EPS.
_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "GIF", "AVIF", "TIFF", *(name for _, name in _PLUGINS.values()))

# What reading broken EXIF data raises.
_DAMAGE = (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, OverflowError, struct.error, zlib.error)

# In what Pillow says of a PNG with more than a megabyte in one compressed text or profile, or 64 MB in all of them. The
# limits are the host's, and stay.
_TOO_MUCH_TEXT = "MAX_TEXT"

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@lru_cache(maxsize=1)
def picture_suffixes() -> frozenset[str]:
    """The suffixes of pictures that can be read here, in lower case."""
    Image.init()
    able = {package for package, (module, name) in _PLUGINS.items() if name in Image.OPEN or _registers(module)}
    return frozenset(IMAGE_SUFFIXES) | {end for end, package in PLUGIN_SUFFIXES.items() if package in able}


def _registers(module: str) -> bool:
    """Import a plug-in, if it is installed, so that Pillow knows its format."""
    try:
        plugin = importlib.import_module(module)
    except ImportError:
        return False
    getattr(plugin, "register_heif_opener", lambda: None)()  # pillow_jxl registers when it is imported
    return True


def read_size(path: Path) -> tuple[int, int]:
    """Read the size a viewer shows, from the file's header alone.

    Returns:
        (width, height) in pixels, with EXIF orientation applied.

    Raises:
        UnreadableImage: The file is missing, not a picture, or too large to decode safely.
    """
    with opened(path) as image:
        if image.format == "TIFF" and _exif_orientation(image) >= 5:
            load(image)  # turned now; releases of Pillow differ in the size before
        width, height = image.size
        return (height, width) if orientation(image) >= 5 else (width, height)


def read_rgb(path: Path, background: tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
    """Decode a picture: upright, 8 bits per channel, opaque. An animation gives its first frame.

    Args:
        path: The file.
        background: (r, g, b), 0 to 255, shows through transparent pixels.

    Raises:
        UnreadableImage: The file is missing, damaged, truncated, or too large to decode safely.
    """
    with opened(path) as image:
        turn = orientation(image)
        load(image)
        seen = opaque(image, background)
    return turned(seen, turn)


def read_picture(picture: Picture, background: tuple[int, int, int]) -> Image.Image:
    """Decode a picture of a dataset and check that its size still matches the dataset.

    Raises:
        UnreadableImage: As `read_rgb`.
        UserError: The picture's size differs from the one in the dataset.
    """
    image = read_rgb(picture.path, background)
    if image.size != picture.size:
        was, now = ("{} x {}".format(*size) for size in (picture.size, image.size))
        raise UserError(
            f"{picture.path} has changed since the dataset was read (it was {was} pixels and is now {now}). "
            "Queue again to reread the folder."
        )
    return image


def file_hash(path: Path) -> str:
    """The content hash of a picture's or a mask's file.

    Raises:
        UnreadableImage: The file is gone, or cannot be read any more.
    """
    try:
        return content_hash(path)
    except FileNotFoundError as error:
        raise UnreadableImage(f"{path} is not there any more. Restore it, or queue again without it.") from error
    except OSError as error:
        raise UnreadableImage(f"{path} cannot be read ({error.strerror}). Replace it, or remove it.") from error


def place(image: Image.Image, placement: Placement, background: tuple[int, int, int] | int) -> Image.Image:
    """Scale a picture and crop or pad it, so that it fills its bucket exactly.

    Args:
        image: The whole picture, RGB or L.
        placement: Its placement in its bucket.
        background: Colour of the padding: (r, g, b), 0 to 255, or one number.

    Returns:
        A picture of the bucket's size and the same mode.
    """
    # Pillow widens the Lanczos kernel when it shrinks, so this does not alias and needs no other filter.
    scaled = image.resize(placement.scaled, Image.Resampling.LANCZOS)
    left, top = placement.offset
    width, height = placement.bucket
    if placement.fit == "crop":
        return scaled.crop((left, top, left + width, top + height))
    canvas = Image.new(image.mode, placement.bucket, background)
    canvas.paste(scaled, (left, top))
    return canvas


def to_array(image: Image.Image) -> np.ndarray:
    """Convert an RGB picture to float32 [H, W, 3], 0 to 1."""
    return np.asarray(image, dtype=np.float32) / np.float32(255)


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Open a picture, reading only its header. Errors of reading it in the block become an UnreadableImage."""
    Image.init()  # registers every format; open() takes only known names, and Pillow before 11.3 has no AVIF
    try:
        require_regular(path)
        with _open(path) as image:
            yield image
    except FileNotFoundError as error:
        raise UnreadableImage(f"{path} is not there any more. Restore it, or queue again without it.") from error
    except PermissionError as error:
        raise UnreadableImage(f"ComfyUI has no permission to read {path}. Change the file's permissions.") from error
    except Image.DecompressionBombError as error:
        most = (Image.MAX_IMAGE_PIXELS or 0) * 2 // 10**6
        raise UnreadableImage(
            f"{path} has more than {most} million pixels, too many to open safely. Scale it down."
        ) from error
    except (UserError, Cancelled, MemoryError):
        raise
    except Exception as error:  # decoders raise whatever they like, libavif a RuntimeError
        if path.suffix.lower() == ".avif" and not features.check("avif"):
            raise UnreadableImage(f"{path} needs Pillow 11.3 or newer. Update Pillow, or save it as PNG.") from error
        # Pillow's own message for an unknown file adds nothing.
        detail = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
        raise UnreadableImage(
            f"{path} is damaged, truncated or not a picture{detail}. Replace it, or remove it from the folder."
        ) from error


def _open(path: Path) -> Image.Image:
    """Open a picture. A PNG with more text or a larger profile than Pillow takes is opened without them."""
    formats = [name for name in _FORMATS if name in Image.OPEN]
    try:
        return Image.open(path, formats=formats)
    except ValueError as error:
        if _TOO_MUCH_TEXT not in str(error):
            raise
    return Image.open(io.BytesIO(_png_without_text(path)), formats=formats)


def load(image: Image.Image) -> None:
    """Decode the pixels. Text behind them that is too long for Pillow does not matter."""
    try:
        image.load()
    except ValueError as error:
        if _TOO_MUCH_TEXT not in str(error):
            raise
        image.load()  # the pixels were decoded before the text was read


def _png_without_text(path: Path) -> bytes:
    """The bytes of a PNG without its text and its colour profile."""
    blob = path.read_bytes()
    kept, at = [blob[:8]], 8
    while at < len(blob):
        end = at + 12 + int.from_bytes(blob[at : at + 4], "big")  # length, type, data, checksum
        if blob[at + 4 : at + 8] not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            kept.append(blob[at:end])
        at = end
    return b"".join(kept)


def orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 (upright) to 8.

    Call it before the pixels are decoded, so that `read_size` and `read_rgb` agree. It calls the base class, because
    PngImageFile decodes the whole picture to look for EXIF data after its end. A TIFF counts as upright, because Pillow
    turns it when it decodes it.
    """
    return 1 if image.format == "TIFF" else _exif_orientation(image)


def _exif_orientation(image: Image.Image) -> int:
    try:
        found = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except _DAMAGE:  # a picture with broken EXIF data is still usable
        return 1
    return found if isinstance(found, int) and found in _TURNS else 1


def opaque(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Convert a decoded picture of any mode to RGB. `background` shows through where it is transparent."""
    if image.mode.startswith("I"):
        image = _from_16_bit(image)
    elif image.mode == "F":
        image = _from_float(image)
    key = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:
        # A 16-bit PNG: Pillow reduced its pixels to 8 bits, but not the colour that means transparent.
        image.info["transparency"] = tuple(value >> 8 for value in key)
    if not image.has_transparency_data:
        return image.convert("RGB")
    canvas = Image.new("RGBA", image.size, (*background, 255))
    canvas.alpha_composite(image.convert("RGBA"))
    return canvas.convert("RGB")


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """Turn a picture upright, given its EXIF orientation, 1 to 8."""
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _from_16_bit(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey (modes I;16, I;16B, and I in older Pillow) to 8-bit L or LA; convert() would clip it."""
    values = np.asarray(image).astype(np.int64).clip(0, 65535)
    grey = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    clear = image.info.get("transparency")
    if clear is None:
        return grey
    return Image.merge("LA", (grey, Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8))))


def _from_float(image: Image.Image) -> Image.Image:
    """Scale floating-point grey of a TIFF, 0 to 1 or 0 to 255, to 8-bit L; convert() would take 1 for black."""
    values = np.nan_to_num(np.asarray(image))
    scale = 255 if values.max() <= 1 else 1
    return Image.fromarray((values * scale).clip(0, 255).round().astype(np.uint8))
