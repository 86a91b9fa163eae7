"""Which folders a dataset can be read from."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture
def places(comfy_host, tmp_path, monkeypatch):
    """An input folder and one outside it, known to the host as `lora_datasets`."""
    import folder_paths
    from lora_workbench.training.data import folders

    inside, outside = tmp_path / "input", tmp_path / "elsewhere"
    inside.mkdir()
    outside.mkdir()
    monkeypatch.setattr(folder_paths, "input_directory", str(inside))
    monkeypatch.setitem(folder_paths.folder_names_and_paths, folders.DATASETS_KEY, ([str(outside)], set()))
    monkeypatch.setattr(folders, "_LIST_HOLDS", -1.0)
    return inside, outside


def roots() -> list[Path]:
    from lora_workbench.training.data.folders import DATASETS_KEY
    from lora_workbench.training.host.paths import input_folders

    return input_folders(DATASETS_KEY)


def put(folder: Path, name: str = "a.png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(folder / name, "PNG")


def test_folders_with_pictures_are_listed(places):
    from lora_workbench.training.data.folders import dataset_folders

    inside, outside = places
    put(inside / "photos" / "10_zorp")
    put(inside / "sets" / "2024" / "anna" / "10_anna")
    put(outside / "cats", "A.JPG")
    put(inside / ".hidden")
    put(inside / "litter", "._a.jpg")
    (inside / "3d").mkdir()
    (inside / "odd" / "x.png").mkdir(parents=True)
    assert dataset_folders(roots()) == [
        "photos", "photos/10_zorp", "sets", "sets/2024", (outside / "cats").as_posix(), outside.as_posix(),
    ]  # fmt: skip


def test_a_folder_that_cannot_be_read_is_no_trouble(places, monkeypatch):
    from lora_workbench.training.data.folders import dataset_folders

    inside, outside = places
    put(inside / "photos")
    outside.rmdir()
    assert dataset_folders(roots()) == ["photos"]


def test_what_may_be_read(places):
    from lora_workbench.training.data.folders import resolve_dataset_folder
    from lora_workbench.training.errors import UserError

    inside, outside = places
    put(outside.parent / "linked")
    assert resolve_dataset_folder("photos", roots()) == inside / "photos"
    assert resolve_dataset_folder(str(outside / "cats"), roots()) == outside / "cats"
    for name in ("../models", "..\\models", "photos\\..\\..\\x", str(inside.parent / "linked"), "photos/../../x"):
        with pytest.raises(UserError, match="outside ComfyUI's input folder"):
            resolve_dataset_folder(name, roots())
    # Saved on Windows.
    put(inside / "sets" / "10_zorp")
    assert resolve_dataset_folder("sets\\10_zorp", roots()) == inside / "sets" / "10_zorp"
    if os.name != "nt":  # elsewhere a backslash is a letter like any other
        put(inside / "odd\\name")
        assert resolve_dataset_folder("odd\\name", roots()) == inside / "odd\\name"
    with pytest.raises(UserError, match="No dataset folder is chosen"):
        resolve_dataset_folder(" ", roots())


def test_a_link_in_the_input_folder_is_followed(places):
    from lora_workbench.training.data.folders import dataset_folders, resolve_dataset_folder
    from lora_workbench.training.data.scan import scan_folder

    inside, outside = places
    put(outside.parent / "linked")
    try:
        os.symlink(outside.parent / "linked", inside / "link", target_is_directory=True)
    except OSError:
        pytest.skip("this system does not let us make links")
    assert "link" in dataset_folders(roots())
    assert len(scan_folder(resolve_dataset_folder("link", roots())).pictures) == 1
