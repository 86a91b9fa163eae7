"""What `dev.py` installs for which command, and how it starts and ends a server."""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def dev(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`dev.py`, with an environment in a folder of its own, into which nothing is really installed."""
    spec = importlib.util.spec_from_file_location("dev_under_test", ROOT / "dev.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    python = tmp_path / ".venv" / "bin" / "python"
    monkeypatch.setattr(module, "venv_python", lambda host: python)

    def make(folder: Path) -> Path:
        python.parent.mkdir(parents=True, exist_ok=True)
        python.touch()
        return python

    monkeypatch.setattr(module, "make_venv", make)
    return module


@pytest.fixture
def host(tmp_path: Path) -> Path:
    folder = tmp_path / "ComfyUI"
    folder.mkdir()
    (folder / "comfyui_version.py").write_text('__version__ = "0.3.75"\n')
    (folder / "requirements.txt").write_text("torch\ntorchaudio\naiohttp>=3.11.8 # the server\n")
    return folder


def installed(dev: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What pip is told to install from now on, one list for each time."""
    found: list[list[str]] = []
    monkeypatch.setattr(dev, "run", lambda command, **_: found.append([str(part) for part in command[6:]]))
    return found


def test_the_demo_needs_no_package_of_the_tests(dev: ModuleType, host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = installed(dev, monkeypatch)
    dev.ensure_environment(host, "demo")
    assert found == [["torch", "torchvision", *dev.HOST_UNLISTED, "aiohttp>=3.11.8"]]
    dev.ensure_environment(host, "demo")
    assert len(found) == 1, "it is there"
    dev.ensure_environment(host, "test")
    assert {"aiohttp>=3.11.8", "pytest", "pytest-xdist>=3.8", "playwright"} < set(found[1])
    for command in ("demo", "serve", "bench", "test"):
        dev.ensure_environment(host, command)
    assert len(found) == 2, "what the tests need has all that the others do"


def test_what_is_needed_newly_is_installed(dev: ModuleType, host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = installed(dev, monkeypatch)
    dev.ensure_environment(host, "test")
    (host / "requirements.txt").write_text("torch\naiohttp>=4\n")
    dev.ensure_environment(host, "demo")
    assert "aiohttp>=4" in found[1]

    def fails(*_: Any, **__: Any) -> None:
        raise SystemExit(1)

    (host / "requirements.txt").write_text("torch\naiohttp>=5\n")
    monkeypatch.setattr(dev, "run", fails)
    with pytest.raises(SystemExit):
        dev.ensure_environment(host, "demo")
    found = installed(dev, monkeypatch)
    dev.ensure_environment(host, "demo")
    assert "aiohttp>=5" in found[0], "what was cut off is installed again"


@pytest.mark.parametrize("command", ["demo", "serve"])
def test_an_argument_that_nobody_reads_is_told(command: str, dev: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["dev.py", command, "--prot", "8189"])
    monkeypatch.setattr(dev, command, lambda _: pytest.fail("it began"))
    with pytest.raises(SystemExit, match="2"):
        dev.main()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], []),
        (["unit"], ["tests/unit"]),
        (["host", "-k", "engine"], ["tests/host", "-k", "engine"]),
        (["browser"], ["tests/browser", "-m", ""]),
        (["long"], ["-m", "long"]),
    ],
)
@pytest.mark.parametrize("cores", [1, 2])
def test_suites_run_in_parallel_where_there_are_two_cores(
    given: list[str], expected: list[str], cores: int, dev: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dev.os, "cpu_count", lambda: cores)
    parallel = ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"] if cores > 1 else []
    assert dev.pytest_arguments(given) == parallel + expected


def test_other_arguments_go_to_pytest_as_they_are(dev: ModuleType) -> None:
    assert dev.pytest_arguments(["tests/unit/test_disk.py", "-x"]) == ["tests/unit/test_disk.py", "-x"]


def test_lint_and_types_are_checked_with_the_whole_suite_only(
    dev: ModuleType, host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    monkeypatch.setattr(dev, "prepare", lambda _: (Path("python"), host))
    monkeypatch.setattr(dev, "run", lambda command, **_: ran.append(command[2]))
    done = subprocess.CompletedProcess([], 3)
    monkeypatch.setattr(dev.subprocess, "run", lambda command, **_: ran.append(command[2]) or done)
    for given, expected in (([], ["ruff", "mypy", "pytest"]), (["unit"], ["pytest"]), (["-x"], ["pytest"])):
        ran.clear()
        with pytest.raises(SystemExit, match="3"):
            dev.test(argparse.Namespace(rest=given))
        assert ran == expected


def test_a_server_that_ends_is_told_at_once(dev: ModuleType, tmp_path: Path) -> None:
    server = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(SystemExit, match=r"ended before it answered \(exit code 3\)\. See .*server\.log"):
        dev.wait_for(server, dev.free_port(), tmp_path / "server.log")


def test_a_server_ends_with_the_command(dev: ModuleType) -> None:
    server = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    dev.end(server)
    assert server.poll() is not None
