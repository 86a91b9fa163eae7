"""The gallery over real HTTP: what it gives, what it saves, and everything it must refuse."""

from __future__ import annotations

import asyncio
import io
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from lora_workbench.training.data.dataset import Dataset
from lora_workbench.training.data.scan import scan_folder
from lora_workbench.training.review.gallery import MOST_ON_A_PAGE, Gallery
from lora_workbench.training.review.gallery_api import LARGEST_BODY, MOST_WRITES, GalleryApi
from PIL import Image


class Api:
    """A client of a server with nothing but the gallery on it."""

    def __init__(self, gallery: Gallery) -> None:
        self.loop = asyncio.new_event_loop()
        app = web.Application()
        app.add_routes(GalleryApi(gallery).routes())
        self.client = TestClient(TestServer(app, loop=self.loop), loop=self.loop)
        self.loop.run_until_complete(self.client.start_server())

    def ask(self, method: str, path: str, **more: Any) -> tuple[int, Any]:
        """Status and JSON (or bytes) of an answer."""

        async def go() -> tuple[int, Any]:
            async with self.client.request(method, path, **more) as answer:
                blob = await answer.read()
                return answer.status, json.loads(blob) if answer.content_type == "application/json" else blob

        return self.loop.run_until_complete(go())

    def together(self, *requests: tuple[str, str, dict[str, Any]]) -> list[int]:
        """The statuses of requests sent at one time."""

        async def go() -> list[int]:
            async def one(method: str, path: str, more: dict[str, Any]) -> int:
                async with self.client.request(method, path, **more) as answer:
                    return answer.status

            return list(await asyncio.gather(*(one(*request) for request in requests)))

        return self.loop.run_until_complete(go())

    def close(self) -> None:
        self.loop.run_until_complete(self.client.close())
        self.loop.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "set" / "2_zorp"
    folder.mkdir(parents=True)
    for number in range(5):
        Image.new("RGB", (600, 300), (number * 40, 0, 0)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"zorp, tag{number}", encoding="utf-8")
    (tmp_path / "secret.png").write_bytes((folder / "0.png").read_bytes())
    return tmp_path / "set"


@pytest.fixture
def dataset(root: Path) -> Dataset:
    return scan_folder(root)


@pytest.fixture
def gallery(tmp_path: Path) -> Gallery:
    return Gallery(tmp_path / "edits", tmp_path / "thumbs")


@pytest.fixture
def api(gallery: Gallery) -> Iterator[Api]:
    made = Api(gallery)
    yield made
    made.close()


@pytest.fixture
def base(gallery: Gallery, dataset: Dataset) -> str:
    return f"/lora_workbench/datasets/{gallery.show(dataset, lambda caption: len(caption.split()))}"


def edit(api: Api, base: str, *edits: dict[str, Any], **more: Any) -> tuple[int, Any]:
    return api.ask("POST", f"{base}/edits", json={"edits": list(edits)}, **more)


def test_pages(api, base):
    status, page = api.ask("GET", f"{base}?start=1&count=2")
    assert status == 200 and page["total"] == 5 and page["start"] == 1
    assert [picture["name"] for picture in page["pictures"]] == ["2_zorp/1.png", "2_zorp/2.png"]
    first = page["pictures"][0]
    assert (first["caption"], first["tokens"], first["width"], first["revision"]) == ("zorp, tag1", 2, 600, 0)
    assert first["counted"]
    assert len(api.ask("GET", base)[1]["pictures"]) == 5
    assert api.ask("GET", f"{base}?start=9")[1]["pictures"] == []


def test_a_page_has_its_limit(api, gallery, dataset):
    first = dataset.pictures[0]
    many = (replace(first, path=first.path.with_name(f"x{number}.png")) for number in range(MOST_ON_A_PAGE + 50))
    key = gallery.show(dataset.with_pictures(tuple(many)))
    page = api.ask("GET", f"/lora_workbench/datasets/{key}?count=999999999")[1]
    assert len(page["pictures"]) == MOST_ON_A_PAGE and page["total"] == MOST_ON_A_PAGE + 50


def test_thumbnails_are_small_upright_and_made_once(api, base, tmp_path):
    status, blob = api.ask("GET", f"{base}/thumbnail?name=2_zorp/3.png")
    with Image.open(io.BytesIO(blob)) as image:
        assert status == 200 and image.format == "JPEG" and image.size == (256, 128)
        assert image.convert("RGB").getpixel((10, 10))[0] == pytest.approx(120, abs=4)
    made = list((tmp_path / "thumbs").rglob("*.jpg"))
    stamp = made[0].stat().st_mtime_ns
    assert len(made) == 1 and api.ask("GET", f"{base}/thumbnail?name=2_zorp/3.png")[1] == blob
    assert made[0].stat().st_mtime_ns == stamp


def test_edits_are_saved_and_seen(api, base, gallery, dataset):
    status, answer = edit(api, base, {"name": "2_zorp/0.png", "revision": 0, "caption": "zorp, hat"},
                          {"name": "2_zorp/1.png", "revision": 0, "excluded": True})  # fmt: skip
    assert status == 200
    assert [(p["caption"], p["excluded"], p["revision"]) for p in answer["pictures"]] == [
        ("zorp, hat", False, 1), ("zorp, tag1", True, 1)]  # fmt: skip
    key = base.rpartition("/")[2]
    assert [picture.caption for picture in gallery.edits(key).applied_to(dataset).pictures] == [
        "zorp, hat", "zorp, tag2", "zorp, tag3", "zorp, tag4"]  # fmt: skip


def test_the_second_of_two_edits_is_told(api, base):
    change = {"name": "2_zorp/0.png", "revision": 0, "caption": "first"}
    assert edit(api, base, change)[0] == 200
    status, answer = edit(api, base, {**change, "caption": "second"})
    assert status == 409 and answer["now"] == {"caption": "first", "excluded": False, "revision": 1}


def test_of_edits_at_one_time_one_wins(api, base):
    requests = [("POST", f"{base}/edits", {"json": {"edits": [
        {"name": "2_zorp/0.png", "revision": 0, "caption": str(number)}]}}) for number in range(10)]  # fmt: skip
    assert sorted(api.together(*requests)) == [200] + [409] * 9


@pytest.mark.parametrize(
    "name", ["../secret.png", "../../secret.png", "/etc/passwd", "2_zorp/../../secret.png", "2_zorp\\0.png", "", "\0"]
)
def test_no_name_leads_out_of_the_dataset(api, base, name):
    assert api.ask("GET", f"{base}/thumbnail", params={"name": name})[0] == 404
    assert edit(api, base, {"name": name, "revision": 0, "caption": "x"})[0] == 404


def test_a_link_out_of_the_folder_is_only_what_the_person_put_there(api, gallery, root, tmp_path):
    """The scan follows a person's own links; a link made after that is no picture of the dataset."""
    key = gallery.show(scan_folder(root))
    os.symlink(tmp_path / "secret.png", root / "2_zorp" / "late.png")
    assert api.ask("GET", f"/lora_workbench/datasets/{key}/thumbnail?name=2_zorp/late.png")[0] == 404


def test_a_picture_that_became_a_link_to_another_is_not_shown(api, base, root, tmp_path):
    Image.new("RGB", (900, 900), "#123456").save(tmp_path / "private.png")
    (root / "2_zorp" / "0.png").unlink()
    os.symlink(tmp_path / "private.png", root / "2_zorp" / "0.png")
    status, answer = api.ask("GET", f"{base}/thumbnail?name=2_zorp/0.png")
    assert status == 422 and "changed since it was loaded" in answer["error"]


@pytest.mark.parametrize("key", ["0" * 32, "..", "%2e%2e%2f", "x" * 5000])
def test_an_unknown_dataset_is_not_found(api, key):
    assert api.ask("GET", f"/lora_workbench/datasets/{key}")[0] == 404


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("{", 400), ("[]", 400), ("{}", 400), ('{"edits": []}', 400), ('{"edits": [3]}', 400), ('{"edits": {}}', 400),
        ('{"edits": [{"name": "2_zorp/0.png"}]}', 400),
        ('{"edits": [{"name": "2_zorp/0.png", "revision": "0"}]}', 400),
        ('{"edits": [{"name": "2_zorp/0.png", "revision": true}]}', 400),
        ('{"edits": [{"name": "2_zorp/0.png", "revision": 0, "caption": 3}]}', 400),
        ('{"edits": [{"name": "2_zorp/0.png", "revision": 0, "excluded": 1}]}', 400),
        ('{"edits": [{"name": "2_zorp/0.png", "revision": 0, "path": "/x"}]}', 400),
        (json.dumps({"edits": [{"name": "2_zorp/0.png", "revision": 0, "caption": "x" * 20_001}]}), 400),
        (json.dumps({"edits": [{"name": "2_zorp/0.png", "revision": 0}] * 2}), 400),
        (json.dumps({"edits": [{"name": "2_zorp/0.png", "revision": 0, "caption": "\ud800"}]}), 400),
        (json.dumps({"edits": [{"name": "2_zorp/0.png", "revision": 0, "caption": "a\0b"}]}), 400),
        ("[" * 100_000, 400),
        ("x" * (LARGEST_BODY + 1), 413),
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
def test_what_is_no_edit_is_refused_and_nothing_saved(api, base, tmp_path, body, status):
    headers = {"Content-Type": "application/json"}
    assert api.ask("POST", f"{base}/edits", data=body, headers=headers)[0] == status
    assert not list((tmp_path / "edits").glob("*.json"))


def test_a_body_without_a_length_is_cut_off_as_well(api, base):
    async def endless():
        for _ in range(LARGEST_BODY // 65536 + 4):
            yield b"x" * 65536

    headers = {"Content-Type": "application/json"}
    assert api.ask("POST", f"{base}/edits", data=endless(), headers=headers)[0] == 413


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "https://elsewhere.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "null"}],
    ids=str,
)
def test_another_site_cannot_write(api, base, headers):
    assert edit(api, base, {"name": "2_zorp/0.png", "revision": 0, "caption": "x"}, headers=headers)[0] == 403


def test_a_form_cannot_write(api, base):
    assert api.ask("POST", f"{base}/edits", data={"edits": "x"})[0] == 415


def test_a_flood_is_slowed(api, base):
    requests = [("POST", f"{base}/edits", {"json": {}})] * (MOST_WRITES + 5)
    assert api.together(*requests).count(429) == 5


@pytest.mark.parametrize("query", ["start=-1", "count=x", "start=1e3", "count=99999999999"])
def test_numbers_are_numbers(api, base, query):
    assert api.ask("GET", f"{base}?{query}")[0] == 400


def test_a_picture_that_went_is_said(api, base, root):
    (root / "2_zorp" / "4.png").unlink()
    status, answer = api.ask("GET", f"{base}/thumbnail?name=2_zorp/4.png")
    assert status == 422 and "is not there any more" in answer["error"]


def test_the_oldest_datasets_are_forgotten(gallery, dataset, tmp_path):
    from dataclasses import replace

    keys = [gallery.show(replace(dataset, root=tmp_path / str(number))) for number in range(70)]
    with pytest.raises(Exception, match="not loaded any more"):
        gallery.names(keys[0])
    assert gallery.names(keys[-1])


def test_a_caption_can_be_as_it_came_again(api, base, gallery):
    edit(api, base, {"name": "2_zorp/0.png", "revision": 0, "caption": "new"})
    _, answer = edit(api, base, {"name": "2_zorp/0.png", "revision": 1, "caption": None})
    assert answer["pictures"][0]["caption"] == "zorp, tag0"
    assert gallery.edits(base.rpartition("/")[2]).stamp() == "", "nothing is edited any more"


def test_captions_are_written_beside_the_pictures_when_asked(api, base, root):
    edit(api, base, {"name": "2_zorp/0.png", "revision": 0, "caption": "edited"},
         {"name": "2_zorp/1.png", "revision": 0, "caption": "edited", "excluded": True})  # fmt: skip
    (root / "2_zorp" / "4.txt").unlink()
    for over, written, first in ((False, 1, "zorp, tag0"), (True, 4, "edited\n")):
        status, answer = api.ask("POST", f"{base}/text_files", json={"over": over})
        assert (status, answer) == (200, {"written": written, "problems": []})
        assert (root / "2_zorp" / "0.txt").read_text(encoding="utf-8") == first
    assert (root / "2_zorp" / "1.txt").read_text(encoding="utf-8") == "zorp, tag1", "left out, so left alone"
    for body in ({}, {"over": "yes"}, []):
        assert api.ask("POST", f"{base}/text_files", json=body)[0] == 400
    elsewhere = {"Sec-Fetch-Site": "cross-site"}
    assert api.ask("POST", f"{base}/text_files", json={"over": True}, headers=elsewhere)[0] == 403


def test_behind_a_proxy_the_browser_is_believed(api, base):
    own = {"Origin": "https://my.comfy.example", "Sec-Fetch-Site": "same-origin"}
    assert edit(api, base, {"name": "2_zorp/0.png", "revision": 0, "caption": "new"}, headers=own)[0] == 200


def test_what_is_shown_twice_is_edited_once(gallery, dataset):
    """A picture that Prior Preservation shows again under another caption keeps that one."""
    from dataclasses import replace

    from lora_workbench.training.data.mixing import with_prior_preservation

    mixed = with_prior_preservation(replace(dataset, trigger="zorp"), "a creature")
    key = gallery.show(mixed)
    assert [item.caption for item in gallery.page(key, 0, 100)] == [f"zorp, tag{number}" for number in range(5)]
    gallery.edits(key).change("2_zorp/0.png", base=0, caption="zorp, edited")
    gallery.edits(key).change("2_zorp/1.png", base=0, excluded=True)
    edited = gallery.edits(key).applied_to(mixed)
    found = [picture.caption for picture in edited.pictures]
    assert found[:2] == ["zorp, edited", "zorp, tag2"] and found[4:6] == ["a creature, tag0", "a creature, tag2"]
    assert len(found) == 8
