"""Every kind of picture file is decoded upright, opaque and 8-bit, or rejected by name."""

from __future__ import annotations

import os
import struct
import sys
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lora_workbench.training.data import images
from lora_workbench.training.data.dataset import Picture, Placement
from lora_workbench.training.errors import UnreadableImage, UserError
from PIL import Image, ImageFile, PngImagePlugin, features

RED, BLUE, GREEN = (220, 30, 40), (20, 60, 200), (0, 255, 0)


def _two_halves(width: int = 64, height: int = 32) -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (width // 2, 0, width, height))
    return image


def _close(pixel: object, wanted: tuple[int, int, int], by: int = 12) -> bool:
    return bool(np.abs(np.subtract(np.array(pixel, dtype=int), wanted)).max() <= by)


def _png(path: Path, depth: int, color_type: int, rows: np.ndarray, clear: bytes = b"", late: bytes = b"") -> Path:
    """Write a PNG that Pillow cannot write: 16-bit colour, a transparent colour, EXIF data at the end."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", rows.shape[1], rows.shape[0], depth, color_type, 0, 0, 0)
    body = b"".join(b"\0" + row.tobytes() for row in rows)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + (chunk(b"tRNS", clear) if clear else b"")
        + chunk(b"IDAT", zlib.compress(body))
        + (chunk(b"eXIf", late) if late else b"")
        + chunk(b"IEND", b"")
    )
    return path


@pytest.mark.parametrize("suffix", images.IMAGE_SUFFIXES)
def test_every_suffix_is_read(tmp_path: Path, suffix: str) -> None:
    if suffix == ".avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    path = tmp_path / f"a{suffix}"
    _two_halves().save(path, quality=95)
    assert images.read_size(path) == (64, 32)
    image = images.read_rgb(path)
    assert image.mode == "RGB" and image.size == (64, 32)
    assert _close(image.getpixel((8, 16)), RED) and _close(image.getpixel((56, 16)), BLUE)


# A point in the red half once the orientation is applied: (x, y) as shares of the displayed size.
RED_AFTER = {1: (0.1, 0.5), 2: (0.9, 0.5), 3: (0.9, 0.5), 4: (0.1, 0.5)}
RED_AFTER |= {5: (0.5, 0.1), 6: (0.5, 0.1), 7: (0.5, 0.9), 8: (0.5, 0.9)}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"phone{suffix}"
    _two_halves().save(path, exif=exif, quality=95)
    size = (64, 32) if orientation < 5 else (32, 64)
    assert images.read_size(path) == size
    image = images.read_rgb(path)
    assert image.size == size
    x, y = RED_AFTER[orientation]
    assert _close(image.getpixel((int(x * size[0]), int(y * size[1]))), RED)
    assert _close(image.getpixel((int((1 - x) * size[0]), int((1 - y) * size[1]))), BLUE)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_broken_exif_loses_the_orientation_but_not_the_picture(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    _two_halves().save(path, exif=b"Exif\0\0garbage that is no TIFF header")
    assert images.read_size(path) == (64, 32)
    assert images.read_rgb(path).size == (64, 32)


def test_size_and_pixels_agree_on_exif_at_the_end_of_a_png(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = _png(tmp_path / "a.png", 8, 0, np.zeros((4, 8), np.uint8), late=exif.tobytes()[6:])
    assert Image.open(path).getexif()[0x0112] == 6
    assert images.read_rgb(path).size == images.read_size(path)


def test_reading_the_size_decodes_no_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for suffix in (".png", ".jpg"):
        _two_halves().save(tmp_path / f"a{suffix}")

    def refuse(_self: ImageFile.ImageFile) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", refuse)
    for suffix in (".png", ".jpg"):
        assert images.read_size(tmp_path / f"a{suffix}") == (64, 32)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P+A"])
def test_transparency_shows_the_background(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.png"
    image = Image.new("RGBA", (8, 8), (100, 100, 100, 255))
    image.paste((7, 8, 9, 0), (0, 0, 4, 8))
    if mode == "P+A":
        image.quantize(4).save(path)
        assert Image.open(path).mode == "P"
    else:
        image.convert(mode).save(path)
    read = images.read_rgb(path, GREEN)
    assert read.getpixel((1, 1)) == GREEN
    assert _close(read.getpixel((6, 6)), (100, 100, 100), 2)


def test_half_transparency_is_blended(tmp_path: Path) -> None:
    path = tmp_path / "a.webp"
    Image.new("RGBA", (16, 16), (0, 0, 0, 128)).save(path, lossless=True)
    assert _close(images.read_rgb(path, (255, 255, 255)).getpixel((3, 3)), (127, 127, 127), 2)


def test_a_transparent_colour_shows_the_background(tmp_path: Path) -> None:
    rows = np.array([[10, 20, 30, 40, 50, 60]], np.uint8)
    path = _png(tmp_path / "a.png", 8, 2, rows.reshape(1, 2, 3), struct.pack(">3H", 10, 20, 30))
    read = images.read_rgb(path, GREEN)
    assert [read.getpixel((x, 0)) for x in range(2)] == [GREEN, (40, 50, 60)]
    deep = np.array([[[1000, 2000, 3000], [40000, 0, 0]]], ">u2")
    path = _png(tmp_path / "b.png", 16, 2, deep, struct.pack(">3H", 1000, 2000, 3000))
    read = images.read_rgb(path, GREEN)
    assert read.getpixel((0, 0)) == GREEN and _close(read.getpixel((1, 0)), (155, 0, 0), 1)


@pytest.mark.parametrize("clear", [False, True])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path, clear: bool) -> None:
    rows = np.array([[0, 257, 25700, 65535]], ">u2")
    path = _png(tmp_path / "a.png", 16, 0, rows, struct.pack(">H", 25700) if clear else b"")
    read = np.asarray(images.read_rgb(path, GREEN))[0].tolist()
    assert read == [[0] * 3, [1] * 3, list(GREEN) if clear else [100] * 3, [255] * 3]


def test_16_bit_grey_in_older_pillow(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 25700, 65535]], np.int32))
    assert image.mode == "I"
    assert np.asarray(images.opaque(image, GREEN))[0, :, 0].tolist() == [0, 100, 255]


def test_cmyk_jpeg(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    _two_halves().convert("CMYK").save(path, quality=95)
    read = images.read_rgb(path)
    assert _close(read.getpixel((8, 16)), RED, 20) and _close(read.getpixel((56, 16)), BLUE, 20)


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    path = tmp_path / "a.webp"
    frames = [Image.new("RGB", (16, 16), color) for color in (RED, BLUE)]
    frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
    assert images.read_rgb(path).getpixel((3, 3)) == RED


@pytest.mark.parametrize("suffix", images.IMAGE_SUFFIXES)
def test_a_truncated_file_is_named(tmp_path: Path, suffix: str) -> None:
    if suffix == ".avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    whole, path = tmp_path / f"w{suffix}", tmp_path / f"half{suffix}"
    Image.effect_noise((120, 90), 90).convert("RGB").save(whole)
    data = whole.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(UnreadableImage, match=f"half{suffix}"):
        images.read_rgb(path)


@pytest.mark.parametrize("suffix", [".gif", ".tiff", ".png", ".avif"])
def test_other_animations_and_many_pages(tmp_path: Path, suffix: str) -> None:
    if suffix == ".avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    path = tmp_path / f"a{suffix}"
    frames = [Image.new("RGB", (16, 16), color) for color in (RED, BLUE)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert images.read_size(path) == (16, 16)
    assert _close(images.read_rgb(path).getpixel((3, 3)), RED)


@pytest.mark.parametrize(
    ("values", "grey"), [(np.full((4, 4), 0.5), 128), (np.full((4, 4), 128.0), 128), (np.full((4, 4), 1e9), 255)]
)
def test_floating_point_tiffs_are_not_black(tmp_path: Path, values: np.ndarray, grey: int) -> None:
    Image.fromarray(values.astype(np.float32)).save(tmp_path / "a.tif")
    assert images.read_rgb(tmp_path / "a.tif").getpixel((1, 1)) == (grey,) * 3


@pytest.mark.parametrize(("suffix", "module"), [(".heic", "pillow_heif"), (".jxl", "pillow_jxl")])
def test_formats_of_plugins(tmp_path: Path, suffix: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(module)
    images.picture_suffixes.cache_clear()
    assert suffix in images.picture_suffixes()
    _two_halves().save(tmp_path / f"a{suffix}", quality=95)
    assert images.read_size(tmp_path / f"a{suffix}") == (64, 32)
    assert _close(images.read_rgb(tmp_path / f"a{suffix}").getpixel((8, 16)), RED)
    # Without the plug-in.
    images.picture_suffixes.cache_clear()
    monkeypatch.setitem(sys.modules, module, None)
    for name in ("HEIF", "JXL"):
        monkeypatch.delitem(Image.OPEN, name, raising=False)
    assert suffix not in images.picture_suffixes()
    images.picture_suffixes.cache_clear()


def test_a_file_that_is_not_a_picture_is_named(tmp_path: Path) -> None:
    path = tmp_path / "letter.png"
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    for read in (images.read_size, images.read_rgb):
        with pytest.raises(UnreadableImage, match=r"letter\.png.*not a picture"):
            read(path)
        with pytest.raises(UnreadableImage, match="gone.png is not there"):
            read(tmp_path / "gone.png")


def test_a_decompression_bomb_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "big.png"
    Image.new("1", (3000, 2000)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2_000_000)
    with pytest.raises(UnreadableImage, match="big.png has more than 4 million pixels"):
        images.read_size(path)


def test_a_picture_of_changed_size_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    _two_halves().save(path)
    picture = Picture(path, (64, 32), "")
    assert images.read_picture(picture, GREEN).size == (64, 32)
    with pytest.raises(UserError, match="64 x 33 pixels and is now 64 x 32"):
        images.read_picture(replace(picture, size=(64, 33)), GREEN)


def test_crop_takes_the_middle() -> None:
    placement = Placement((32, 32), (64, 32), (16, 0))
    placed = images.place(_two_halves(), placement, GREEN)
    assert placed.size == (32, 32)
    assert placed.getpixel((14, 5)) == RED and placed.getpixel((17, 5)) == BLUE


def test_pad_leaves_the_background_outside_the_picture() -> None:
    placement = Placement((32, 32), (32, 16), (0, 8), "pad")
    placed = np.asarray(images.place(_two_halves(), placement, GREEN))
    outside = np.ones((32, 32), bool)
    outside[8:24] = False
    assert (placed[outside] == GREEN).all() and not (placed[~outside] == GREEN).all(-1).any()


def test_shrinking_does_not_alias() -> None:
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    placed = images.place(Image.fromarray(stripes), Placement((30, 30), (30, 30), (0, 0)), GREEN)
    assert np.abs(np.asarray(placed).astype(int) - 127).max() < 8


def test_array() -> None:
    image = _two_halves()
    array = images.to_array(image)
    assert array.shape == (32, 64, 3) and array.dtype == np.float32
    assert array[0, 0].tolist() == pytest.approx([value / 255 for value in RED])


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_whatever_a_decoder_raises_is_a_damaged_picture(tmp_path: Path) -> None:
    """Of a thousand damaged AVIFs a few make libavif raise RuntimeError, the others OSError or nothing."""
    rng = np.random.default_rng(1)
    whole = tmp_path / "whole.avif"
    Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(whole, quality=30)
    blob, outcomes = whole.read_bytes(), Counter[str]()
    for number in range(400):
        damaged = bytearray(blob)
        for place in rng.integers(0, len(blob), 3):
            damaged[place] ^= int(rng.integers(1, 255))
        path = tmp_path / f"{number}.avif"
        path.write_bytes(damaged)
        try:
            images.read_rgb(path)
            outcomes["read"] += 1
        except UnreadableImage as error:
            assert str(path) in str(error)
            outcomes[type(error.__cause__).__name__] += 1
        path.unlink()
    assert outcomes["RuntimeError"] and outcomes["read"] < 400, outcomes


@pytest.mark.parametrize("error", [RuntimeError("Failed to decode"), AssertionError(), KeyError("x"), Exception("odd")])
def test_any_error_of_a_decoder_names_the_picture(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(path)

    def fails(_self: Image.Image) -> None:
        raise error

    monkeypatch.setattr(Image.Image, "load", fails)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fails)
    with pytest.raises(UnreadableImage, match="a.png is damaged"):
        images.read_rgb(path)


def not_a_file(path: Path, kind: str) -> None:
    """Put something at a path that is no regular file."""
    path.unlink(missing_ok=True)
    if kind == "folder":
        path.mkdir()
    elif kind == "link to itself":
        path.symlink_to(path.name)
    else:
        os.mkfifo(path)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no FIFOs, and links need a privilege")
@pytest.mark.parametrize("kind", ["folder", "link to itself", "FIFO"])
def test_what_is_no_regular_file_is_named_and_never_waited_for(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    not_a_file(path, kind)
    for read in (images.read_size, images.read_rgb, images.file_hash):
        with pytest.raises(UnreadableImage, match="a.png"):
            read(path)


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
@pytest.mark.parametrize("behind", [False, True])
def test_a_png_with_much_text_or_a_large_profile_is_read(kind: bytes, behind: bool, tmp_path: Path) -> None:
    """kohya_ss #817: ComfyUI's own pictures carry their workflow. Pillow's limits belong to the host and stay."""
    pixels = np.random.default_rng(0).integers(0, 255, (24, 40, 3), dtype=np.uint8)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    blob = path.read_bytes()
    packed = zlib.compress(b"workflow " * 300_000)  # 2.7 MB
    data = {b"zTXt": b"prompt\0\0", b"iTXt": b"prompt\0\1\0\0\0", b"iCCP": b"profile\0\0"}[kind] + packed
    chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    at = blob.index(b"IEND") - 4 if behind else 33  # behind the pixels, or behind the header
    path.write_bytes(blob[:at] + chunk + blob[at:])
    limits = PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY, Image.MAX_IMAGE_PIXELS
    assert images.read_size(path) == (40, 24)
    assert np.array_equal(np.asarray(images.read_rgb(path)), pixels)
    assert limits == (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY, Image.MAX_IMAGE_PIXELS)
    cut = tmp_path / "cut.png"
    cut.write_bytes(path.read_bytes()[: blob.index(b"IDAT") + 200 + (0 if behind else len(chunk))])
    with pytest.raises(UnreadableImage, match="damaged"):
        images.read_rgb(cut)
