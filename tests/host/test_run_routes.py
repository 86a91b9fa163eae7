"""What a page can ask of runs, on a real server: their list, one run while it trains and later, and the wishes."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import uuid
from typing import Any

import aiohttp
import pytest
from support.prompts import defaults, node
from support.server import PromptInterrupted

RUNS = "/lora_workbench/runs"


def trains(server: Any, name: str, **settings: Any) -> dict[str, Any]:
    """Photos → buckets → LoRA, as one prompt."""
    data = defaults(server, "LoadDataset") | {"folder": "photos", "trigger": "zorp", "background": "#fdfdfd"}
    trainer = defaults(server, "LoRATrainer") | {"name": name, "rank": 4, "learning_rate": 1e-3, **settings}
    return {
        "load": node("CheckpointLoaderSimple", ckpt_name="tiny_sd15.safetensors"),
        "data": node("LoadDataset", **data),
        "buckets": node(
            "BucketImages", dataset=["data", 0], **defaults(server, "BucketImages") | {"resolution": 128, "step": 32}
        ),
        "train": node(
            "LoRATrainer", model=["load", 0], clip=["load", 1], vae=["load", 2], dataset=["buckets", 0], **trainer
        ),
    }


def queued(server: Any, prompt: dict[str, Any], workflow: str) -> str:
    return server.queue(prompt, extra_data={"extra_pnginfo": {"workflow": {"id": workflow}}})


def lines_of(server: Any, workflow: str) -> list[dict[str, Any]]:
    """The lines of a workflow's runs that came over the websocket, with the run's id."""
    events = [event["data"] for event in server.events if event["type"] == "lora_workbench.run"]
    return [
        {**line, "run": event["run"], "node": event["node"]}
        for event in events
        if event["workflow"] == workflow
        for line in event["lines"]
    ]


def until(server: Any, workflow: str, step: int) -> str:
    """Wait until a step of the workflow's run was heard; return the run's id."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for line in lines_of(server, workflow):
            if line["kind"] == "step" and line["step"] >= step:
                return str(line["run"])
        time.sleep(0.02)
    raise TimeoutError(f"step {step} did not come")


def test_a_run_is_told_while_it_trains_and_afterwards(server: Any) -> None:
    workflow = uuid.uuid4().hex
    prompt = queued(server, trains(server, "routes_told", steps=300, save_every_steps=290), workflow)
    run = until(server, workflow, 3)
    live = server.get(f"{RUNS}/{run}")
    assert live["state"] == "running" and live["curve"]["step"][:3] == [1, 2, 3] and live["name"] == "routes_told"
    (brief,) = server.get(f"{RUNS}?workflow={workflow}")
    assert (brief["id"], brief["node"], brief["state"]) == (run, "train", "running")
    assert server.get(f"{RUNS}?workflow={uuid.uuid4().hex}") == [] == server.get(f"{RUNS}?workflow=")
    server.request(f"{RUNS}/{run}/stop", {})
    server.wait(prompt)
    deadline = time.monotonic() + 10  # the last lines can come a tenth of a second after the prompt has ended
    while (heard := lines_of(server, workflow))[-1]["kind"] != "end" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert {line["node"] for line in heard} == {"train"} and heard[0]["kind"] == "begin"
    steps = [line["step"] for line in heard if line["kind"] == "step"]
    assert steps == list(range(1, len(steps) + 1)) and 3 <= len(steps) < 300
    assert heard[-1]["kind"] == "end" and heard[-1]["outcome"] == "stopped"
    log = (server.base / "output" / "lora_workbench" / "routes_told" / "log.jsonl").read_text().splitlines()
    assert [json.loads(row)["kind"] for row in log] == [line["kind"] for line in heard]
    assert server.get(f"{RUNS}/{run}")["state"] == "stopped"
    assert server.get(RUNS)[0]["id"] == run
    with pytest.raises(urllib.error.HTTPError, match="404"):
        server.request(f"{RUNS}/{run}/save", {})


def test_a_run_that_is_discarded_leaves_nothing_and_ends_the_queue(server: Any) -> None:
    workflow = uuid.uuid4().hex
    prompt = trains(server, "routes_discarded", steps=5000)
    prompt["keep"] = node("SaveLoRA", lora=["train", 0], name="discarded", precision="fp32", format="kohya",
                          overwrite=True)  # fmt: skip
    number = queued(server, prompt, workflow)
    run = until(server, workflow, 2)
    with pytest.raises(urllib.error.HTTPError, match="400"):
        server.request(f"{RUNS}/{run}/fly", {})
    server.request(f"{RUNS}/{run}/discard", {})
    entry = server.wait(number)
    assert any(kind == "execution_interrupted" for kind, _ in entry["status"]["messages"]), PromptInterrupted
    assert not (server.base / "output" / "lora_workbench" / "routes_discarded").exists()
    assert not (server.base / "models" / "loras" / "discarded.safetensors").exists()
    assert server.get(f"{RUNS}?workflow={workflow}") == []
    with pytest.raises(urllib.error.HTTPError, match="404"):
        server.get(f"{RUNS}/{run}")


def test_every_page_hears_of_a_run_whoever_queued_it(server: Any) -> None:
    workflow = uuid.uuid4().hex
    extra = {"extra_pnginfo": {"workflow": {"id": workflow}}}
    server.queue(trains(server, "routes_elsewhere", steps=3), extra_data=extra, client_id="another page")
    until(server, workflow, 3)


def test_a_run_goes_on_when_its_page_is_gone(server: Any) -> None:
    """Its websocket breaks off in mid-run. A page that comes later gets the whole curve."""
    workflow, page = uuid.uuid4().hex, uuid.uuid4().hex
    extra = {"extra_pnginfo": {"workflow": {"id": workflow}}}

    async def leaves() -> None:
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{server.url}/ws?clientId={page}", max_msg_size=0) as socket,
        ):
            prompt = trains(server, "routes_left", steps=40)
            await asyncio.to_thread(server.queue, prompt, extra_data=extra, client_id=page)
            async for message in socket:
                event = json.loads(message.data) if message.type == aiohttp.WSMsgType.TEXT else {"type": ""}
                if event["type"] == "lora_workbench.run" and event["data"]["workflow"] == workflow:
                    transport = socket._response.connection.transport
                    transport.abort()  # without a word
                    return

    asyncio.run(leaves())
    (brief,) = server.get(f"{RUNS}?workflow={workflow}")
    assert brief["state"] == "running", "the run was over before its page left"
    deadline = time.monotonic() + 120
    while (told := server.get(f"{RUNS}/{brief['id']}"))["state"] == "running" and time.monotonic() < deadline:
        time.sleep(0.1)
    assert told["state"] == "finished" and told["curve"]["step"] == list(range(1, 41))
    assert all(line["run"] == brief["id"] for line in lines_of(server, workflow)), "another page hears of it"
