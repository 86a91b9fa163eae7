"""Real photos to train on: those shipped inside scikit-image's wheel, so nothing is downloaded.

All are in the public domain or CC0 (see `skimage/data/README.txt`). The wheel also has grey ones: camera,
coins, moon, brick, grass, gravel (each 512 x 512 except coins); the rest are drawings, masks and microscopy.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from PIL import Image


@dataclass(frozen=True)
class Photo:
    """One photo.

    Attributes:
        file: Its name in the wheel.
        caption: What a person would write under it.
        crop: Left, upper, right, lower; None keeps the whole frame. Crops make portrait shapes, which the
            originals lack.
    """

    file: str
    caption: str
    crop: tuple[int, int, int, int] | None = None


PHOTOS = {
    "astronaut": Photo("astronaut.png", "a smiling astronaut in an orange space suit", (80, 0, 416, 512)),
    "cat": Photo("chelsea.png", "a ginger cat looking into the camera"),  # 451 x 300
    "coffee": Photo("coffee.png", "a cup of espresso on a wooden table"),  # 600 x 400
    "rocket": Photo("rocket.jpg", "a rocket on its launch pad at dusk"),  # 640 x 427
    "launch_tower": Photo("rocket.jpg", "a rocket beside its tower, close up", (200, 0, 440, 427)),
    "motorcycle": Photo("motorcycle_left.png", "a motorcycle in a workshop"),  # 741 x 500
    "galaxies": Photo("hubble_deep_field.jpg", "distant galaxies on a black sky"),  # 1000 x 872
    "cameraman": Photo("camera.png", "a man with a film camera on a tripod, black and white"),  # 512 x 512
}


def photo(name: str) -> Image.Image:
    """The photo `name` of `PHOTOS`, RGB."""
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("scikit-image is needed for its photos: pip install scikit-image")
    entry = PHOTOS[name]
    with Image.open(Path(spec.origin).parent / "data" / entry.file) as image:
        return image.convert("RGB").crop(entry.crop or (0, 0, *image.size))


def write_photos(folder: Path, names: Iterable[str] = PHOTOS, longest: int = 1024) -> list[Path]:
    """Write photos with a caption file beside each, every second one as PNG and the others as JPEG.

    Args:
        folder: Where to; made if missing. For kohya's repeats name it like `10_photo`.
        names: Keys of `PHOTOS`.
        longest: Shrink so that no side is longer than this.

    Returns:
        The image files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for index, name in enumerate(names):
        image = photo(name)
        image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
        file = folder / f"{name}.{'jpg' if index % 2 else 'png'}"
        image.save(file, quality=95)
        file.with_suffix(".txt").write_text(PHOTOS[name].caption, encoding="utf-8")
        files.append(file)
    return files
