"""Checks and measures the engine on a GPU machine, in at most eight minutes.

    python lab gpu [FOLDER] [--tiny] [--seconds 480] [--only WORD …]

First the engine's tests on the GPU. Then SDXL 1024 with `memory` at `auto` in 8, 12, 16 and 24 GB of the card: the way
it takes, its peak and its estimate. Then a step of SD1.5 512, SDXL 1024 and a Z-Image-shaped model at 1024 px in bf16:
the frozen model alone (eager and in a CUDA graph), LoRA Workbench and TrainLoraNode. Weights are random and made on the
GPU. Each case has a process and at most 20 seconds of its own; what fails has a row that says why. Writes gpu.json and
gpu.md into FOLDER, else $OUT, else .host/gpu. `--tiny` measures narrow models in two steps, also without a GPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from ..pack import ROOT
from .cases import Case, Job, NotHere, floor, floor_in_graph, host, load_random, our_inputs, ours
from .host import start_host
from .machine import describe_machine
from .memory import PeakMemory
from .turns import now, tell

CASE_SECONDS, TEST_SECONDS = 20, 150
TESTS = ("test_engine.py", "test_architectures.py", "test_session.py")
JOBS = {
    "SD1.5 512": Job("sd15", 512, "bf16", 20),
    "SDXL 1024": Job("sdxl", 1024, "bf16", 10),
    "Z-Image 1024": Job("zimage", 1024, "bf16", 6),
}
SIZES = (8, 12, 16, 24)  # GB of a card that this one stands in for
LADDER = {f"SDXL 1024 in {size} GB": size for size in SIZES}
CASES: dict[str, Case] = {
    "frozen model": floor,
    "frozen model, CUDA graph": floor_in_graph,
    "LoRA Workbench": ours,
    "LoRA Workbench, gradient checkpointing": ours,
    "TrainLoraNode": host,
    "TrainLoraNode, gradient checkpointing": host,
}
# What else a full check of the pack needs, and for what.
PACKAGES = {
    "pytest": "the engine's tests", "bitsandbytes": "the 8-bit optimizers", "pytorch_optimizer": "Prodigy and others",
    "diffusers": "the comparison with its models", "comfyui_frontend_package": "the server's and the browser's tests",
}  # fmt: skip


class Timed:
    """The watch of a case that runs through."""

    def __init__(self) -> None:
        self._marks: list[float] = []

    def running(self) -> Any:
        """Start the clock."""
        self._marks = [now()]
        return nullcontext()

    def step(self) -> None:
        """Mark the end of a step."""
        self._marks.append(now())

    @property
    def seconds(self) -> float:
        """The median step, without the first, which warms up."""
        each = [after - before for before, after in zip(self._marks, self._marks[1:], strict=False)]
        return statistics.median(each[1:] or each)


def run_case(name: str, case: str, tiny: bool) -> dict[str, Any]:
    """Run one case in this process: seconds of a step, growth and peak of the memory in bytes."""
    import torch

    start_host()
    job = JOBS[name]
    if tiny:
        job = replace(job, model=f"{job.model}-narrow", side=64, steps=2)
    job = replace(job, checkpointing="checkpointing" in case)
    watch = Timed()
    patcher = load_random(job.model, torch.bfloat16, trainer=not case.startswith("frozen"))
    with PeakMemory() as memory:
        try:
            CASES[case](patcher, job, watch)
        except NotHere as reason:
            return {"skipped": str(reason)}
    return {"seconds": watch.seconds, "growth": memory.growth, "peak": memory.peak}


def run_in(name: str, tiny: bool) -> dict[str, Any]:
    """Train SDXL with `memory` at `auto` on a part of the card: seconds of a step, peak, way to fit, estimate.

    The part is what PyTorch may take and what ComfyUI is shown as free.
    """
    from unittest import mock

    import torch

    start_host()
    import comfy.model_management as management
    from lora_workbench.training.events import SilentSink
    from lora_workbench.training.host.model import HostModel
    from lora_workbench.training.loop import train
    from lora_workbench.training.preflight import prepared

    limit = LADDER[name] * 2**30
    job = replace(JOBS["SDXL 1024"], steps=4)
    if tiny:
        job = replace(job, model="sdxl-narrow", side=64, steps=2)
    if torch.cuda.is_available():
        _, whole = torch.cuda.mem_get_info()
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / whole))

    def free(device: Any = None, torch_free_too: bool = False) -> Any:
        taken = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
        left = limit - taken
        return (left, left) if torch_free_too else left

    watch = Timed()
    patcher = load_random(job.model, torch.float16, trainer=True)
    plan, *stores = our_inputs(job)
    with mock.patch.object(management, "get_free_memory", free), PeakMemory() as memory:
        with prepared(HostModel(patcher), plan, *stores) as ready, watch.running():
            train(ready.setup, ready.run, SilentSink(), lambda *_: watch.step(), ready.step_down)
        need = ready.fit.need(ready.fit.ladder.rung)
    return {
        "seconds": watch.seconds, "growth": memory.growth, "peak": memory.peak, "estimate": need.total,
        "way": ready.fit.ladder.rung.name,
    }  # fmt: skip


class Finished(NamedTuple):
    """How a process ended.

    Attributes:
        output: What it printed.
        errors: What it printed as errors.
        code: Its exit status; None if its time was over.
    """

    output: str
    errors: str
    code: int | None


def within(line: list[str], seconds: float, **environment: str) -> Finished:
    """Run a process, and end it with all that it started when its time is over."""
    with tempfile.TemporaryFile("w+", errors="replace") as out, tempfile.TemporaryFile("w+", errors="replace") as err:
        process = subprocess.Popen(
            line, stdout=out, stderr=err, cwd=ROOT, start_new_session=True,
            env=os.environ | {"PYTHONWARNINGS": "ignore", "PYTHONUNBUFFERED": "1"} | environment,
        )  # fmt: skip
        try:
            code: int | None = process.wait(max(seconds, 0))
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:
                _end(process)
        out.seek(0)
        err.seek(0)
        return Finished(out.read(), err.read(), code)


def _end(process: subprocess.Popen[Any]) -> None:
    if hasattr(os, "killpg"):  # not on Windows
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()


@dataclass
class Check:
    """One check of a GPU machine.

    Attributes:
        folder: Where its two files are written.
        tiny: Whether narrow models are measured.
        until: When it must be done, on the monotonic clock.
        rows: What was measured.
        tests: How each test file ended.
        skipped: What could not be checked for want of a package.
    """

    folder: Path
    tiny: bool
    until: float
    rows: list[dict[str, Any]] = field(default_factory=list)
    tests: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)

    @property
    def left(self) -> float:
        """Seconds left."""
        return self.until - time.monotonic()

    @property
    def environment(self) -> dict[str, str]:
        """Variables of every process: where the tests run, or one thread.

        On a busy processor threads wait for each other, and narrow models gain nothing from them.
        """
        return {"OMP_NUM_THREADS": "1"} if self.tiny else {"TEST_ON_GPU": "1"}

    def run(self, only: list[str]) -> None:
        """Run the tests and every case, and write after each what is known.

        Args:
            only: Words of which the name of a case or `tests` must hold one; empty for everything.
        """
        self.skipped = [f"{name} ({what})" for name, what in PACKAGES.items() if not importlib.util.find_spec(name)]
        if wanted("tests", only):
            self.run_tests()
        for name in LADDER:
            if wanted(f"{name} memory", only):
                self.measure(name, "memory auto")
                self.write()
        for name in JOBS:
            for case in CASES:
                if wanted(f"{name} {case}", only):
                    self.measure(name, case)
                    self.write()
        self.write()

    def run_tests(self) -> None:
        """Run the engine's tests on the GPU, each file in its share of the time."""
        ends = time.monotonic() + min(TEST_SECONDS, self.left / 2)
        for number, file in enumerate(TESTS):
            line = [sys.executable, "-m", "pytest", f"tests/host/{file}", "-vv", "-p", "no:cacheprovider"]
            found = within(line, (ends - time.monotonic()) / (len(TESTS) - number), **self.environment)
            self.tests[file] = told_by_tests(found)
            print(f"{file}: {self.tests[file]}", flush=True)
            self.write()

    def measure(self, name: str, case: str) -> None:
        """Run one case in a process of its own."""
        seconds = min(CASE_SECONDS, self.left)
        row: dict[str, Any] = {"model": name, "trainer": case}
        if seconds < 5:
            row["skipped"] = "no time was left"
        else:
            line = [sys.executable, str(ROOT / "lab"), "gpu", "--case", name, case, *["--tiny"] * self.tiny]
            row |= result_of(within(line, seconds, **self.environment), seconds)
        self.rows.append(row)
        print(json.dumps(row), flush=True)

    def write(self) -> None:
        """Write both files."""
        self.folder.mkdir(parents=True, exist_ok=True)
        told = {
            "machine": describe_machine(), "tiny": self.tiny, "tests": self.tests, "skipped": self.skipped,
            "steps": self.rows,
        }  # fmt: skip
        (self.folder / "gpu.json").write_text(json.dumps(told, indent=1), encoding="utf-8")
        (self.folder / "gpu.md").write_text(self.page(), encoding="utf-8")

    def page(self) -> str:
        """Everything as Markdown."""
        lines = [f"# {describe_machine()}", "", *["Narrow models, two steps of 64 px.", ""] * self.tiny]
        lines += [f"- {file}: {how}" for file, how in self.tests.items()]
        lines += [f"- skipped, not installed: {what}" for what in self.skipped]
        return "\n".join([*lines, "", step_table(self.rows), ""])


def wanted(name: str, only: list[str]) -> bool:
    """Whether a name holds one of the words, or there are none."""
    return not only or any(word.lower() in name.lower() for word in only)


def told_by_tests(found: Finished) -> str:
    """How a test file ended: which tests failed, how many passed."""
    lines = found.output.strip().splitlines()
    failed = [line for line in lines if line.startswith(("FAILED ", "ERROR "))]
    if found.code is None:
        failed = [line.split()[0] for line in lines if re.search(r" (FAILED|ERROR)\b", line)]
        passed = sum(" PASSED" in line for line in lines)
        return "; ".join([*failed, f"{passed} passed before its time was over"])
    return "; ".join([*failed, *(lines or last_lines(found.errors))[-1:]])


def result_of(found: Finished, seconds: float) -> dict[str, Any]:
    """What a case printed, or why it printed nothing."""
    for line in found.output.splitlines():
        if line.startswith("RESULT "):
            return json.loads(line.removeprefix("RESULT "))
    if found.code is None:
        return {"failed": f"it took more than {seconds:.0f} s"}
    why = last_lines(found.errors) or [f"exit status {found.code}"]
    return {"failed": why[-1][:300]}


def last_lines(text: str) -> list[str]:
    """The lines of an error output that are not progress bars or the host's log."""
    lines = (line.strip() for line in text.splitlines())
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Exit|NotHere|Diverged)\b", line)]
    return errors or text.strip().splitlines()


def step_table(rows: list[dict[str, Any]]) -> str:
    """Step time and peak memory of each case, one number a cell; below it why some have none."""
    lines = ["| model | trainer | ms a step | of frozen | peak, GiB |", "| --- | --- | --- | --- | --- |"]
    frozen = {row["model"]: row["seconds"] for row in rows if row["trainer"] == "frozen model" and "seconds" in row}
    notes = []
    for row in rows:
        cells = ["", "", ""]
        if "seconds" in row:
            base = frozen.get(row["model"])
            ratio = f"{row['seconds'] / base:.2f}" if base else ""
            cells = [f"{row['seconds'] * 1e3:.1f}", ratio, f"{row['peak'] / 2**30:.2f}"]
            if "way" in row:
                notes.append(f"- {row['model']}: {row['way']}; estimate {row['estimate'] / 2**30:.2f} GiB")
        else:
            how = "skipped" if "skipped" in row else "failed"
            notes.append(f"- {row['model']}, {row['trainer']}: {how}: {row[how]}")
        lines.append(f"| {row['model']} | {row['trainer']} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *notes])


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--tiny", action="store_true", help="narrow models, two steps, tests on the CPU")
    parser.add_argument("--seconds", type=float, default=480, help="for everything")
    parser.add_argument("--only", nargs="+", default=[], help="cases whose name holds one of these words, or tests")
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        name, case = args.case
        tell("RESULT", run_in(name, args.tiny) if name in LADDER else run_case(name, case, args.tiny))
        return
    check = Check(
        args.folder or Path(os.environ.get("OUT") or ROOT / ".host" / "gpu"), args.tiny,
        time.monotonic() + args.seconds,
    )  # fmt: skip
    start_host()
    check.run(args.only)
    print("\n" + check.page(), flush=True)
