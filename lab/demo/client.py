"""Talk to a running ComfyUI: queue a prompt and follow it as the browser does."""

from __future__ import annotations

import asyncio
import http.client
import json
import struct
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import aiohttp  # a dependency of ComfyUI's server

POLL = 0.5  # seconds
PATIENCE = 60.0  # seconds
# The kind of binary message that carries a node's progress text, as ComfyUI numbers them.
TEXT_MESSAGE = 3


class ServerError(RuntimeError):
    """The server cannot be reached, refused a prompt, or a node failed."""


class Client:
    """One client of a ComfyUI on this machine.

    Args:
        port: Where it listens.
    """

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.id = uuid.uuid4().hex
        # This machine is never behind a proxy, whatever the environment says.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def wait_until_up(self, timeout: float = 180) -> None:
        """Wait until the server answers.

        Raises:
            ServerError: Nothing answered within `timeout` seconds, or the server is not ComfyUI.
        """
        deadline = time.monotonic() + timeout
        while True:
            try:
                self.get("/system_stats")
                return
            except OSError as error:
                if time.monotonic() > deadline:
                    raise ServerError(
                        f"ComfyUI did not answer at {self.url} within {timeout:.0f} s ({error}). Read its log."
                    ) from None
            time.sleep(POLL)

    def get(self, path: str) -> Any:
        """The JSON that `path` answers with.

        Raises:
            ServerError: The answer is not JSON, so the server is not ComfyUI.
        """
        try:
            return json.loads(self._read(path))
        except OSError as error:  # also a connection that broke
            if not isinstance(error, urllib.error.HTTPError) or error.code != HTTPStatus.NOT_FOUND:
                raise
        except (ValueError, http.client.HTTPException):
            pass
        raise ServerError(f"The server at {self.url} is not ComfyUI. Name the port that ComfyUI listens on.")

    def file(self, entry: dict[str, str]) -> bytes:
        """The bytes of a node's output file: {"filename", "subfolder", "type"}."""
        return self._read(f"/view?{urllib.parse.urlencode(entry)}")

    def run(
        self, prompt: dict[str, Any], *, on_node: Callable[[str], None], on_text: Callable[[str], None]
    ) -> dict[str, Any]:
        """Queue a prompt and wait until it is done.

        Args:
            prompt: In API format.
            on_node: Called with the id of each node when it begins.
            on_text: Called with each progress text of a node.

        Returns:
            The outputs of output nodes, by node id.

        Raises:
            ServerError: The prompt was refused, a node failed, or the server went away.
        """
        prompt_id = asyncio.run(self._follow(prompt, on_node, on_text))
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:  # the server reports the end a moment before it writes the history
            entry = self.get(f"/history/{prompt_id}").get(prompt_id)
            if entry:
                return entry["outputs"]
            time.sleep(POLL)
        raise ServerError("ComfyUI finished the prompt but has no record of its outputs. Read its log.")

    def _read(self, path: str) -> bytes:
        with self._opener.open(self.url + path, timeout=30) as answer:
            return answer.read()

    async def _follow(
        self, prompt: dict[str, Any], on_node: Callable[[str], None], on_text: Callable[[str], None]
    ) -> str:
        try:
            async with (
                aiohttp.ClientSession() as session,
                session.ws_connect(f"{self.url}/ws?clientId={self.id}", max_msg_size=0) as socket,
            ):
                prompt_id = await self._queue(session, prompt)
                async for message in socket:
                    if message.type == aiohttp.WSMsgType.BINARY:
                        text = _progress_text(message.data)
                        if text:
                            on_text(text)
                    elif message.type == aiohttp.WSMsgType.TEXT:
                        event = json.loads(message.data)
                        if _is_end(event, prompt_id):
                            return prompt_id
                        if event["type"] == "executing" and event["data"].get("node"):
                            on_node(event["data"]["node"])
        except aiohttp.ClientError as error:
            raise ServerError(f"The connection to ComfyUI broke: {error}. Read its log.") from None
        raise ServerError("ComfyUI ended before the prompt was done. Read its log.")

    async def _queue(self, session: aiohttp.ClientSession, prompt: dict[str, Any]) -> str:
        body = {"prompt": prompt, "client_id": self.id}
        async with session.post(f"{self.url}/prompt", json=body) as answer:
            reply = await answer.json()
            if answer.status != 200:
                raise ServerError(_refusal(reply))
            return reply["prompt_id"]


def _progress_text(message: bytes) -> str:
    """The text of a progress message, empty for other kinds. Layout: kind, length of the node id, id, text."""
    kind, length = struct.unpack(">II", message[:8])
    return message[8 + length :].decode(errors="replace") if kind == TEXT_MESSAGE else ""


def _is_end(event: dict[str, Any], prompt_id: str) -> bool:
    """Whether an event reports that our prompt is done.

    Raises:
        ServerError: The prompt failed or was cancelled.
    """
    data = event["data"]
    if data.get("prompt_id") != prompt_id:
        return False
    if event["type"] == "execution_error":
        raise ServerError(f"{data['node_type']} failed: {data['exception_message'].strip()}")
    if event["type"] == "execution_interrupted":
        raise ServerError(f"The workflow was cancelled at {data['node_type']}.")
    return event["type"] == "execution_success"


def _refusal(reply: dict[str, Any]) -> str:
    """The errors of a refused prompt: its own, then those of each node."""
    lines = [f"ComfyUI refused the workflow: {reply['error']['message']}"]
    for number, node in (reply.get("node_errors") or {}).items():
        lines += [f"  {node['class_type']} (node {number}): {error['details']}" for error in node["errors"]]
    return "\n".join(lines)
