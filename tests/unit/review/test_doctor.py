"""The doctor finds what was put wrong on purpose, names the files, and says nothing of a sound set."""

from __future__ import annotations

import functools
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lora_workbench.training.data.buckets import BucketConfig, assign_buckets
from lora_workbench.training.data.dataset import Dataset, Picture, name_in, without
from lora_workbench.training.data.mixing import concat
from lora_workbench.training.data.scan import scan_folder
from lora_workbench.training.errors import UnreadableImage, UserError
from lora_workbench.training.review import doctor
from lora_workbench.training.review.doctor import NOTE, SPOILS, WEAKENS, examine
from lora_workbench.training.review.looks import Look, look_at, near_duplicates
from PIL import Image, ImageFilter

SIDE = 640


@functools.cache
def scene(seed: int, size: tuple[int, int] = (SIDE, SIDE)) -> Image.Image:
    """A picture unlike that of any other seed, sharp all over."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (9, 9, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    grain = rng.integers(-20, 20, (size[1], size[0], 1))
    return Image.fromarray((np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8))


def write(folder: Path, name: str, image: Image.Image, caption: str = "", **options: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    image.save(folder / name, **({"compress_level": 1} if name.endswith(".png") else {}), **options)
    if caption:
        (folder / name).with_suffix(".txt").write_text(caption, encoding="utf-8")
    return folder / name


@pytest.fixture(scope="module")
def sound_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    for number in range(12):
        write(folder, f"{number:02d}.png", scene(number), f"zorp at place number {number}")
    return folder


@pytest.fixture
def sound(sound_files: Path, tmp_path: Path) -> Path:
    shutil.copytree(sound_files, tmp_path / "1_zorp")
    return tmp_path


def examined(root: Path, **settings: object):
    dataset = assign_buckets(scan_folder(root, trigger="zorp"), BucketConfig(resolution=512))
    dataset = replace(dataset, **settings)
    looks = []
    for picture in dataset.pictures:
        try:
            looks.append(look_at(picture, dataset.background))
        except UnreadableImage:
            looks.append(None)
    return dataset, examine(dataset, looks, lambda caption: len(caption.split()))


def kinds(examination) -> dict[str, object]:
    return {finding.kind: finding for finding in examination.findings}


def test_a_sound_set_is_left_in_peace(sound):
    _, examination = examined(sound)
    assert examination.findings == ()
    assert examination.text() == "12 pictures, no problems found."
    assert examination.excluded == frozenset()


def test_near_duplicates_are_found_and_the_largest_is_kept(sound):
    folder = sound / "1_zorp"
    write(folder, "small.jpg", scene(3).resize((512, 512)), "zorp small", quality=80)
    write(folder, "mirrored.png", scene(5).transpose(Image.Transpose.FLIP_LEFT_RIGHT), "zorp mirrored")
    dataset, examination = examined(sound)
    found = kinds(examination)["near-duplicates"]
    assert found.severity == SPOILS
    assert found.files == ("1_zorp/03.png = 1_zorp/small.jpg", "1_zorp/05.png = 1_zorp/mirrored.png")
    assert "2 groups" in found.what and "1 pair mirrored" in found.what
    assert set(found.exclude) == {"1_zorp/small.jpg", "1_zorp/mirrored.png"}
    kept = without(dataset, examination.excluded)
    assert len(kept.pictures) == 12 and len(dataset.pictures) == 14


def test_a_file_that_is_there_twice_is_not_taken_out_twice(sound):
    dataset = scan_folder(sound)
    twice = concat([dataset, dataset])
    examination = examine(twice, [look_at(picture, (255, 255, 255)) for picture in twice.pictures])
    found = kinds(examination)
    assert "near-duplicates" not in found and examination.excluded == frozenset()
    assert found["there twice"].severity == NOTE and len(found["there twice"].files) == 12


def test_of_any_number_of_copies_one_is_kept(sound):
    folder = sound / "1_zorp"
    for number, side in enumerate((300, 500, 700, 400)):  # the largest comes neither first nor last
        write(folder, f"copy{number}.png", scene(3).resize((side, side)), "zorp")
    write(folder, "near.png", scene(3).crop((12, 12, SIDE, SIDE)), "zorp")
    dataset, examination = examined(sound)
    found = kinds(examination)["near-duplicates"]
    names = [f"1_zorp/{name}.png" for name in ("copy2", "03", "copy0", "copy1", "copy3", "near")]
    assert found.files == (" = ".join(names),)
    assert "1 group of near-duplicates, 6 pictures in all" in found.what
    assert found.exclude == tuple(names[1:])
    assert len(without(dataset, examination.excluded).pictures) == 12


def test_a_chain_of_near_duplicates_keeps_what_differs(sound, monkeypatch):
    """As frames of a film do: each is near to the next one, and the ends are far apart."""
    dataset = scan_folder(sound)
    looks = [look_at(picture, (255, 255, 255)) for picture in dataset.pictures]
    monkeypatch.setattr(doctor, "near_duplicates", lambda _looks, most: [(n, n + 1, False) for n in range(6)])
    found = kinds(examine(dataset, looks))["near-duplicates"]
    assert found.files == ("1_zorp/00.png = 1_zorp/01.png", "1_zorp/02.png = 1_zorp/03.png",
                           "1_zorp/04.png = 1_zorp/05.png")  # fmt: skip
    assert found.exclude == ("1_zorp/01.png", "1_zorp/03.png", "1_zorp/05.png")


def test_blur_is_ranked_within_the_set(sound):
    write(sound / "1_zorp", "blurred.png", scene(40).filter(ImageFilter.GaussianBlur(4)), "zorp blurred")
    assert kinds(examined(sound)[1])["blurred"].files == ("1_zorp/blurred.png",)
    # A set of flat art is not blurred.
    for file in (sound / "1_zorp").glob("*.png"):
        Image.open(file).filter(ImageFilter.GaussianBlur(4)).save(file, compress_level=1)
    assert "blurred" not in kinds(examined(sound)[1])


def test_what_the_bucket_costs_is_named(sound):
    write(sound / "1_zorp", "tiny.png", scene(50, (200, 200)), "zorp tiny")
    write(sound / "1_zorp", "panorama.png", scene(51, (2400, 300)), "zorp wide")
    found = kinds(examined(sound)[1])
    assert found["too small"].files[0] == "1_zorp/tiny.png (2.6 ×)"
    assert found["too small"].exclude == ("1_zorp/tiny.png",)
    assert [name.split(" ")[0] for name in found["cropped"].files] == ["1_zorp/panorama.png"]


def test_how_files_are_stored_is_told(sound):
    exif = Image.Exif()
    exif[0x0112] = 6
    write(sound / "1_zorp", "turned.jpg", scene(60), "zorp turned", exif=exif)
    clear = scene(61).convert("RGBA")
    clear.paste((0, 0, 0, 0), (0, 0, 100, 100))
    write(sound / "1_zorp", "clear.png", clear, "zorp clear")
    found = kinds(examined(sound)[1])
    assert found["rotated"].files == ("1_zorp/turned.jpg",)
    assert found["transparent"].files == ("1_zorp/clear.png",)


def test_captions_of_more_than_eight_chunks_are_found(sound):
    dataset, _ = examined(sound)
    captions = ["zorp, " + "word " * 599, "zorp, " + "word " * 600]
    pictures = [replace(p, caption=c) for p, c in zip(dataset.pictures, captions, strict=False)]
    found = kinds(examine(replace(dataset, pictures=tuple(pictures)), [_plain(n) for n in range(2)],
                          lambda caption: len(caption.split())))  # fmt: skip
    assert found["huge captions"].files == ("1_zorp/01.png",) and "more than 600 tokens" in found["huge captions"].what
    assert found["long captions"].files == ("1_zorp/00.png",)


def test_captions_are_examined(sound):
    dataset, _ = examined(sound)
    captions = ["", "a hat"] + ["zorp, word " * 40] + ["zorp twice"] * 2
    pictures = [replace(p, caption=c) for p, c in zip(dataset.pictures, captions, strict=False)]
    found = kinds(examine(replace(dataset, pictures=(*pictures, *dataset.pictures[5:])), [_plain(n) for n in range(12)],
                          lambda caption: len(caption.split())))  # fmt: skip
    assert found["no caption"].files == ("1_zorp/00.png",)
    assert found["no trigger"].files == ("1_zorp/00.png", "1_zorp/01.png")
    assert found["long captions"].files == ("1_zorp/02.png",)
    assert found["identical captions"].files == ("1_zorp/03.png", "1_zorp/04.png")
    looks = [_plain(n) for n in range(12)]
    same = kinds(examine(dataset.with_pictures(replace(p, caption="zorp, hat") for p in dataset.pictures), looks))
    assert same["identical captions"].what == "All captions are the same."
    assert len(same["identical captions"].files) == 12
    # A folder's name and the trigger are no caption; without a text encoder words and signs are counted.
    bare = dataset.with_pictures(replace(p, caption="zorp", class_word="zorp") for p in dataset.pictures)
    found = kinds(examine(bare, looks))
    assert found["no caption"].severity == WEAKENS and len(found["no caption"].files) == 12
    assert "identical captions" not in found
    wordy = [replace(dataset.pictures[0], caption="zorp, " * 38), *dataset.pictures[1:]]
    assert kinds(examine(dataset.with_pictures(tuple(wordy)), looks))["long captions"].files == ("1_zorp/00.png",)


def test_each_concept_is_asked_for_its_own_trigger(sound):
    one = scan_folder(sound, trigger="zorp")
    quibs = (replace(p, caption=f"quib {n}", path=p.path.with_name(f"q{n}.png")) for n, p in enumerate(one.pictures))
    two = replace(one.with_pictures(tuple(quibs)), trigger="quib", root=sound / "other", name="other")
    looks = [_plain(n) for n in range(24)]
    assert "no trigger" not in kinds(examine(concat([one, two]), looks))
    wrong = concat([one, replace(two, trigger="third")])
    assert kinds(examine(wrong, looks))["no trigger"].what == "12 pictures lack the trigger 'third'."


def test_names_of_folders_far_apart_stay_apart():
    pictures = tuple(Picture(Path(f"/{disk}/a/001.png"), (64, 64), disk) for disk in ("data", "mnt"))
    dataset = Dataset(pictures)
    first, second = (name_in(dataset, picture) for picture in pictures)
    assert first != second and first.endswith("/001.png")
    assert without(dataset, frozenset({first})).pictures == pictures[1:]


def test_useless_tags_are_named(sound):
    dataset, _ = examined(sound)
    pictures = [replace(p, caption=f"zorp, teal, only{n}, scarf{n % 3}") for n, p in enumerate(dataset.pictures)]
    found = kinds(examine(dataset.with_pictures(tuple(pictures)), [_plain(n) for n in range(12)]))
    assert found["tags on all"].what == "1 tag is on every picture: teal." and len(found["tags on all"].files) == 12
    assert found["tags on one"].what == "12 of 17 tags are on one picture only."
    assert found["tags on one"].files[0] == "1_zorp/00.png (only0)"
    # One typing error among tags that all have company.
    pictures = [replace(p, caption=f"zorp, scarf{n % 3}, hat{n % 2}") for n, p in enumerate(dataset.pictures)]
    pictures[4] = replace(pictures[4], caption="zorp, scraf1, hat0")
    found = kinds(examine(dataset.with_pictures(tuple(pictures)), [_plain(n) for n in range(12)]))
    assert found["tags on one"].files == ("1_zorp/04.png (scraf1)",)


def test_amounts_are_weighed(tmp_path):
    for number in range(12):
        write(tmp_path / "10_zorp", f"{number}.png", scene(number), f"zorp {number}")
    for number in range(4):
        write(tmp_path / "2_hat", f"h{number}.png", scene(100 + number), f"zorp hat {number}")
    found = kinds(examined(tmp_path)[1])
    assert found["few pictures"].what == "The concept '2_hat' has 4 pictures."
    assert found["few pictures"].files == tuple(f"2_hat/h{number}.png" for number in range(4))
    assert found["unbalanced"].what == "'10_zorp' is seen 120 times an epoch, '2_hat' 8 times."
    assert found["unbalanced"].files == found["few pictures"].files


@pytest.mark.parametrize(("count", "said"), [(30, ""), (31, "suits a style"), (51, "more than a style needs")])
def test_many_pictures_are_noted(sound, count, said):
    dataset = scan_folder(sound, trigger="zorp")
    first = dataset.pictures[0]
    many = (replace(first, path=first.path.with_name(f"{n}.png"), caption=f"zorp {n}") for n in range(count))
    found = kinds(examine(dataset.with_pictures(tuple(many)), [_plain(n) for n in range(count)]))
    assert ("many pictures" in found) == bool(said)
    assert said in (found["many pictures"].advice if said else "")


def test_a_file_that_went_bad_is_named(sound):
    dataset = assign_buckets(scan_folder(sound, trigger="zorp"), BucketConfig(resolution=512))
    bad = dataset.pictures[2].path
    bad.write_bytes(bad.read_bytes()[:200])
    with pytest.raises(UnreadableImage):
        look_at(dataset.pictures[2], dataset.background)
    examination = examine(dataset, [None if n == 2 else _plain(n) for n in range(12)])
    assert kinds(examination)["unreadable"].files == ("1_zorp/02.png",)
    assert examination.text().startswith("1. 1 picture cannot be read.")


def test_pairs_are_found_as_one_by_one(sound):
    rng = random.Random(0)
    looks = [Look(rng.getrandbits(64), rng.getrandbits(64), 1.0, False, 0.0) for _ in range(2500)]
    looks[2400] = replace(looks[7], hash=looks[7].hash ^ 0b1011)
    looks[1500] = replace(looks[9], hash=looks[9].mirrored ^ 1, mirrored=looks[9].hash)
    assert near_duplicates(looks) == [(7, 2400, False), (9, 1500, True)]
    # A hundred copies of one picture hide no other pair.
    looks += [looks[3]] * 100
    pairs = near_duplicates(looks, most=150)
    assert {(7, 2400, False), (9, 1500, True)} <= set(pairs) and len(pairs) == 102


def test_a_missing_package_is_named(sound, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "imagehash", None)
    dataset: Dataset = scan_folder(sound)
    with pytest.raises(UserError, match=r'pip install "ImageHash'):
        look_at(dataset.pictures[0], dataset.background)


def _plain(number: int) -> Look:
    return Look(random.Random(number).getrandbits(64), random.Random(-number - 1).getrandbits(64), 100.0, False, 0.0)


def test_what_is_only_to_be_kept_is_not_held_against_the_set(sound):
    dataset = replace(scan_folder(sound), trigger="zorp")
    learned = [replace(p, caption=f"zorp, {p.path.stem} {number}") for number, p in enumerate(dataset.pictures)]
    kept = [
        replace(p, caption="a thing", is_regularization=True, path=p.path.with_name(f"k_{p.path.name}"))
        for p in learned
    ]
    looks = [_plain(number * 977) for number in range(len(learned))]
    mixed = dataset.with_pictures((*learned, *kept))
    found = examine(mixed, looks + looks)
    assert found.pictures == len(learned)
    assert not {"no trigger", "near-duplicates", "identical captions"} & set(kinds(found))
    wrong = dataset.with_pictures((*learned, replace(kept[0], caption="a Zorp"), *kept[1:]))
    bad = kinds(examine(wrong, looks + looks))["trigger on kept pictures"]
    assert bad.severity == SPOILS and len(bad.files) == 1
