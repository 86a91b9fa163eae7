"""The demo's parts that need no server of ComfyUI's: its sheet, its line of progress, its client, its pictures."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from lora_workbench.lab.demo import run
from lora_workbench.lab.demo.client import Client, ServerError
from lora_workbench.lab.demo.pictures import write_pictures
from lora_workbench.lab.demo.sheet import picture_sheet
from lora_workbench.lab.demo.workflow import WorkflowError, to_prompt
from lora_workbench.lab.world import concepts
from PIL import Image


@pytest.mark.parametrize(("count", "note"), [(12, "all 12"), (150, "24 of 150")])
def test_a_folder_of_any_number_of_pictures_fits_on_the_sheet(count: int, note: str, tmp_path: Path) -> None:
    for number in range(count):
        Image.new("RGB", (16, 16), (number, 0, 0)).save(tmp_path / f"{number:03d}.png")
    assert run.training_row(tmp_path, tmp_path / "none").note == note
    row = run.training_row(tmp_path, tmp_path)
    assert row.note == f"{note}; also {count} regularization pictures"
    sheet = picture_sheet("title", "note", [row], "footer")
    assert sheet.width == 1200 and sheet.getbbox() is not None


def test_the_line_of_progress_stays_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run.shutil, "get_terminal_size", lambda: os.terminal_size((20, 10)))
    long, short = run.Line._over("step 1/240 of many words"), run.Line._over("done")
    assert len(long) == len(short) == 20 and short.rstrip() == "\r[demo] done", "what was longer is wiped out"


@contextlib.contextmanager
def answering(body: bytes, head: bytes = b"HTTP/1.0 200 OK\r\n\r\n") -> Iterator[int]:
    """A server that answers everything with `head` and `body`; yields its port."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.wfile.write(head + body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server.server_port
        finally:
            server.shutdown()


def test_this_machine_is_not_looked_for_behind_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody there
    monkeypatch.setenv("no_proxy", "")
    with answering(b'{"here": true}') as port:
        assert Client(port).get("/") == {"here": True}


@pytest.mark.parametrize(
    "answer",
    [
        {"body": b"<html>something else</html>"},
        {"body": b"", "head": b"HTTP/1.0 404 Not Found\r\n\r\n"},
        {"body": b"", "head": b"SSH-2.0-something\r\n"},
    ],
)
def test_another_server_than_comfyui_is_told(answer: dict[str, bytes]) -> None:
    with answering(**answer) as port, pytest.raises(ServerError, match=f"{port} is not ComfyUI"):
        Client(port).wait_until_up(timeout=0)


@pytest.mark.parametrize("head", [b"", b"HTTP/1.0 503 Service Unavailable\r\n\r\n"], ids=["hangs up", "busy"])
def test_a_server_that_is_not_up_yet_is_waited_for(head: bytes) -> None:
    with answering(b"", head) as port, pytest.raises(ServerError, match="did not answer"):
        Client(port).wait_until_up(timeout=0)


def test_a_caption_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = concepts.pictures("zorp", 2, 0)

    def no_power(*_: object) -> None:
        raise OSError("the power went")

    with monkeypatch.context() as broken:
        broken.setattr(os, "replace", no_power)
        with pytest.raises(OSError, match="power"):
            write_pictures(tmp_path, pictures)
    assert not list(tmp_path.iterdir())
    assert len(write_pictures(tmp_path, pictures)) == 2
    assert [file.read_text(encoding="utf-8").strip() for file in sorted(tmp_path.glob("*.txt"))] == [
        caption for _, caption in pictures
    ]
    assert not list(tmp_path.glob("*.part")) and not list(tmp_path.glob(".*.part"))


def test_pictures_of_another_version_go_and_a_persons_stay(tmp_path: Path) -> None:
    old, new = concepts.pictures("zorp", 5, 0), concepts.pictures("zorp", 3, 7)
    folder = tmp_path / "10_zorp"
    first, second, third, fourth, fifth = write_pictures(folder, old)
    first.with_suffix(".txt").write_text("my own words", encoding="utf-8")
    Image.new("RGB", (8, 8)).save(fifth)
    Image.new("RGB", (8, 8)).save(folder / "mine.png")
    kept = {file: file.read_bytes() for file in (first, first.with_suffix(".txt"), fifth, folder / "mine.png")}
    assert write_pictures(folder, new) == [second, third]
    assert second.with_suffix(".txt").read_text(encoding="utf-8").strip() == new[1][1]
    assert not fourth.exists() and not fourth.with_suffix(".txt").exists(), "there are three now"
    assert {file: file.read_bytes() for file in kept} == kept, "what a person changed or added"
    assert write_pictures(folder, new) == [], "all there"
    (folder / ".lora_workbench.json").write_text("{", encoding="utf-8")
    assert write_pictures(folder, old) == [fourth], "a damaged list: what lies there stays, what is missing comes"


def test_how_its_lora_is_sampled_is_read_from_the_workflow() -> None:
    def node(kind: str, title: str = "", **inputs: object) -> dict[str, object]:
        return {"class_type": kind, "inputs": inputs, "_meta": {"title": title}}

    prompt = {
        "1": node("CheckpointLoaderSimple", ckpt_name="small.safetensors"),
        "2": node("CLIPTextEncode", text="zorp on a hill"),
        "3": node("EmptySD3LatentImage", width=192, height=64),
        "4": node("KSampler", positive=["2", 0], latent_image=["3", 0], steps=9, cfg=3.5, sampler_name="euler",
                  scheduler="normal"),
        "5": node("VAEDecode", samples=["4", 0]),
        "6": node("SaveImage", "After", images=["5", 0]),
    }  # fmt: skip
    assert run.how_to_sample(prompt) == (
        "only with the checkpoint small.safetensors, 192 x 64, 9 steps, CFG 3.5, euler, normal, and a prompt "
        'such as "zorp on a hill"'
    )


def test_a_list_that_is_none_is_like_no_list(tmp_path: Path) -> None:
    from lora_workbench.lab.demo import pictures

    (tmp_path / pictures._LIST).write_text("[]", encoding="utf-8")
    written = pictures.write_pictures(tmp_path, [(Image.new("RGB", (8, 8)), "a zorp")])
    assert [file.exists() for file in written] == [True]


def test_a_workflow_saved_before_an_optional_input_was_added_takes_its_default() -> None:
    info = {"input": {"required": {"steps": ["INT", {}]}, "optional": {"warn": ["BOOLEAN", {"default": True}]}},
            "display_name": "X"}  # fmt: skip

    def inputs(*values: object) -> object:
        workflow = {"nodes": [{"id": 1, "type": "X", "widgets_values": list(values)}], "links": []}
        return to_prompt(workflow, {"X": info})["1"]["inputs"]

    assert inputs(3) == {"steps": 3, "warn": True}
    assert inputs(3, False) == {"steps": 3, "warn": False}
    with pytest.raises(WorkflowError, match="none for 'steps'"):
        inputs()
