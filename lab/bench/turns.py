"""Cases that take steps in turn, each in a process that stays alive, so that a slow moment meets all of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..pack import ROOT


class Alive:
    """A benchmark case in its own process, which takes one step on request.

    Attributes:
        failed: Why it ended; empty while it is well.
        result: What it printed at its end.
    """

    def __init__(self, command: str, *arguments: object, **environment: str) -> None:
        line = [sys.executable, str(ROOT / "lab"), command, *map(str, arguments)]
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - open while the process is
        self._process = subprocess.Popen(
            line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
            env=os.environ | {"PYTHONWARNINGS": "ignore"} | environment,
        )  # fmt: skip
        self.failed = ""
        self.result: dict[str, Any] = {}

    def ready(self) -> bool:
        """Wait until it can take its first step."""
        return self._answer("READY") is not None

    def step(self) -> dict[str, float] | None:
        """Have it take one step; None if it has ended."""
        assert self._process.stdin
        if self.failed:
            return None
        try:
            self._process.stdin.write("go\n")
            self._process.stdin.flush()
        except OSError:  # it has ended
            pass
        return self._answer("STEP")

    def finish(self) -> None:
        """Let it end and read its result, after its last step."""
        assert self._process.stdin
        self._process.stdin.close()
        self.result = {} if self.failed else self._answer("RESULT") or {}
        self.stop()

    def stop(self) -> None:
        """End the process whatever it does."""
        assert self._process.stdout
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def _answer(self, word: str) -> dict[str, Any] | None:
        assert self._process.stdout
        for line in self._process.stdout:
            if line.startswith(word + " "):
                return json.loads(line.removeprefix(word))
        self._errors.seek(0)
        last = self._errors.read().decode(errors="replace").strip().splitlines()
        self.failed = last[-1] if last else "it ended without a message"
        return None


class Served:
    """The watch of a case in such a process: each step waits for its turn.

    Args:
        model: A BaseModel of the host whose passes are timed apart; None times whole steps only.
    """

    def __init__(self, model: Any = None) -> None:
        self._model = model
        self._marks: dict[str, float] = {}

    @contextmanager
    def running(self) -> Iterator[None]:
        """Time the steps inside the block."""
        with timed_passes(self._model, self._marks):
            tell("READY", {})
            self._wait()
            yield

    def step(self) -> None:
        """Print how long the step took, and wait for the next turn."""
        found = {"seconds": now() - self._start}
        if self._marks:
            found["passes"] = self._marks["end"] - self._marks["start"]
        tell("STEP", found)
        self._wait()

    def _wait(self) -> None:
        sys.stdin.readline()  # empty once the other process has taken all its turns
        self._start = now()


@contextmanager
def timed_passes(model: Any, marks: dict[str, float]) -> Iterator[None]:
    """Mark when the model's forward starts and when the last backward ends."""
    from unittest import mock

    import torch

    if model is None:
        yield
        return
    forward, backward = model.apply_model, torch.autograd.backward

    def started(*args: Any, **kwargs: Any) -> Any:
        marks["start"] = now()
        return forward(*args, **kwargs)

    def ended(*args: Any, **kwargs: Any) -> Any:
        backward(*args, **kwargs)
        marks["end"] = now()

    with mock.patch.object(model, "apply_model", started), mock.patch.object(torch.autograd, "backward", ended):
        yield


def tell(word: str, values: dict[str, Any]) -> None:
    """Print one line for the other process."""
    print(word, json.dumps(values), flush=True)


def now() -> float:
    """Seconds on the clock after the GPU has finished its queue."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def in_turn(cases: list[Alive], rounds: int) -> list[list[dict[str, float]]]:
    """Have the cases take a step each, again and again, until they end.

    Every second round goes backwards, so that a drift of the machine's pace favours nobody.

    Returns:
        For each round what the cases measured, in their order. Empty if one failed.
    """
    found: list[list[dict[str, float]]] = []
    for number in range(rounds):
        order = range(len(cases)) if number % 2 == 0 else reversed(range(len(cases)))
        steps = {index: cases[index].step() for index in order}
        if None in steps.values():
            break
        found.append([steps[index] for index in range(len(cases))])  # type: ignore[misc]
    whole = len(found) == rounds
    for case in cases:
        case.finish() if whole else case.stop()
    return found if whole and all(case.result for case in cases) else []
