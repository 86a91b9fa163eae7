"""A real ComfyUI server for tests: started with the pack mounted, driven over HTTP, ended by its own process id."""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import aiohttp

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT = 180.0  # seconds; 11 on a quiet machine
FINISHED = ("execution_success", "execution_error", "execution_interrupted")


class PromptError(RuntimeError):
    """A prompt was refused by validation, or a node of it raised."""


class PromptInterrupted(PromptError):
    """A prompt was cancelled."""


def _dev() -> ModuleType:
    """The module dev.py, loaded by path: the repository root must not be on sys.path."""
    spec = spec_from_file_location("lora_workbench_dev", ROOT / "dev.py")
    assert spec and spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class ComfyServer:
    """A ComfyUI process and one websocket client of it, as a context manager.

    Attributes:
        base: Its base directory (models, input, output, temp, user).
        url: Such as http://127.0.0.1:34567.
        events: Every websocket message so far, oldest first: `{"type": ..., "data": ...}`. Binary ones are
            decoded: `progress_text` has data {"node", "text"}; `preview_image` has data {"image": bytes of a
            JPEG or PNG, ...metadata such as "node_id"}.
    """

    def __init__(self, host: Path, base: Path, *arguments: str) -> None:
        """Prepare; `arguments` go to main.py. The process starts on entering the context."""
        self.host, self.base, self.arguments = host, base, arguments
        self.events: list[dict[str, Any]] = []
        self.client_id = uuid.uuid4().hex
        self._log = base / "server.log"

    @property
    def log(self) -> str:
        """Everything the server has printed so far."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def __enter__(self) -> ComfyServer:
        dev = _dev()
        dev.make_base(self.base)
        port = dev.free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = dev.server_command(Path(sys.executable), self.host, self.base, port, *self.arguments)
        with self._log.open("w", encoding="utf-8") as sink:
            self.process = subprocess.Popen(
                command, cwd=self.host, env=dev.environment(self.host), stdout=sink, stderr=subprocess.STDOUT
            )
        try:
            self._wait_until_up()
            self._connect()
        except BaseException:  # whatever ends the start, the process must not outlive it
            self._stop_process()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._listening.cancel)
        self._listener.join(10)
        self._stop_process()

    # Requests

    def queue(self, prompt: dict[str, Any], **extra: Any) -> str:
        """Queue an API-format prompt.

        Args:
            prompt: Node id → {"class_type": ..., "inputs": {...}}.
            **extra: Further fields of the request, such as `extra_data`.

        Returns:
            Its prompt id.

        Raises:
            PromptError: Validation refused it; the text names node, input and reason.
        """
        body = {"prompt": prompt, "client_id": self.client_id, **extra}
        try:
            return json.loads(self.request("/prompt", body))["prompt_id"]
        except urllib.error.HTTPError as error:
            raise PromptError(_refusal(json.loads(error.read()))) from None

    def run(self, prompt: dict[str, Any], timeout: float = 120) -> dict[str, Any]:
        """Queue a prompt and wait for it.

        Returns:
            Its history entry; `["outputs"]` holds what output nodes showed, by node id.

        Raises:
            PromptError: It was refused, or a node raised; the text has node, error and traceback.
            PromptInterrupted: It was cancelled.
            TimeoutError: It took longer than `timeout` seconds; it is interrupted then.
        """
        entry = self.wait(self.queue(prompt), timeout)
        for kind, data in entry["status"]["messages"]:
            if kind == "execution_error":
                raise PromptError("{node_type} (node {node_id}) raised {exception_type}: {exception_message}\n"
                                  .format_map(data) + "".join(data["traceback"]))
            if kind == "execution_interrupted":
                raise PromptInterrupted("{node_type} (node {node_id}) was interrupted".format_map(data))
        return entry

    def wait(self, prompt_id: str, timeout: float = 120) -> dict[str, Any]:
        """Wait until a queued prompt has ended in whatever way and return its history entry."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            self._check_alive()
            entry = self.get(f"/history/{prompt_id}").get(prompt_id)
            # Messages travel separately: the last one may arrive after the history entry is there.
            if entry and any(e["type"] in FINISHED and e["data"].get("prompt_id") == prompt_id
                             for e in self.events):
                return entry
            time.sleep(0.05)
        self.interrupt()
        raise TimeoutError(f"prompt {prompt_id} took longer than {timeout:.0f} s\n{self._log_tail()}")

    def interrupt(self) -> None:
        """Cancel what is running now."""
        self.request("/interrupt", {})

    def object_info(self, node: str = "") -> dict[str, Any]:
        """What the server tells the browser about all nodes, or about one."""
        return self.get("/object_info" + (f"/{node}" if node else ""))

    def view(self, filename: str, subfolder: str = "", type: str = "output") -> bytes:
        """The bytes of a file in the output, input or temp folder."""
        query = urllib.parse.urlencode({"filename": filename, "subfolder": subfolder, "type": type})
        return self.request(f"/view?{query}")

    def get(self, path: str) -> Any:
        """The JSON that `path` answers with."""
        return json.loads(self.request(path))

    def request(self, path: str, body: Any = None, timeout: float = 30) -> bytes:
        """GET `path`, or POST `body` as JSON to it."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.read()

    # The process

    def _wait_until_up(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            self._check_alive()
            with contextlib.suppress(OSError):  # not listening yet
                self.request("/system_stats", timeout=5)
                return
            time.sleep(0.1)
        raise TimeoutError(f"ComfyUI did not answer within {START_TIMEOUT:.0f} s\n{self._log_tail()}")

    def _check_alive(self) -> None:
        status = self.process.poll()
        if status is not None:
            raise RuntimeError(f"ComfyUI ended with status {status}\n{self._log_tail()}")

    def _log_tail(self) -> str:
        return "\n".join(self.log.splitlines()[-40:])

    def _stop_process(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    # The websocket

    def _connect(self) -> None:
        connected = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._listening = self._loop.create_task(self._listen(connected))

        def work() -> None:
            with contextlib.suppress(asyncio.CancelledError):
                self._loop.run_until_complete(self._listening)
            self._loop.close()

        self._listener = threading.Thread(target=work, name="comfy-events", daemon=True)
        self._listener.start()
        if not connected.wait(30):
            raise TimeoutError("no websocket connection to ComfyUI")

    async def _listen(self, connected: threading.Event) -> None:
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{self.url}/ws?clientId={self.client_id}", max_msg_size=0) as socket,
        ):
            # As the browser does: previews then come with the node they belong to.
            await socket.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
            connected.set()
            async for message in socket:
                if message.type == aiohttp.WSMsgType.TEXT:
                    self.events.append(json.loads(message.data))
                elif message.type == aiohttp.WSMsgType.BINARY:
                    self.events.append(_decode(message.data))


def _decode(message: bytes) -> dict[str, Any]:
    """Decode a binary message: its kind, then what the kinds of the host's `BinaryEventTypes` hold."""
    kind, size = struct.unpack(">II", message[:8])
    if kind == 1:  # `size` is the image format here
        return {"type": "preview_image", "data": {"image": message[8:]}}
    head, rest = message[8 : 8 + size], message[8 + size :]
    if kind == 3:
        return {"type": "progress_text", "data": {"node": head.decode(), "text": rest.decode()}}
    if kind == 4:
        return {"type": "preview_image", "data": {**json.loads(head), "image": rest}}
    return {"type": f"binary_{kind}", "data": message[4:]}


def _refusal(answer: dict[str, Any]) -> str:
    """The text of a refused prompt: the error, then each node with each of its errors."""
    lines = [f"{answer['error']['message']}: {answer['error'].get('details', '')}"]
    for node_id, node in (answer.get("node_errors") or {}).items():
        lines += [f"{node['class_type']} (node {node_id}): {error['message']}: {error['details']}"
                  for error in node["errors"]]
    return "\n".join(lines)
