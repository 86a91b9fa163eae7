"""Atomic writes, also by concurrent writers, and file names."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from lora_workbench.training import disk
from lora_workbench.training.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def part_of(folder: Path, pid: int, machine: str = disk._MACHINE) -> Path:
    """An unfinished file, as a process with that pid leaves it."""
    part = folder / f".lora_workbench-{machine}-{pid}-7f00-3.part"
    part.write_text("half")
    return part


def ended_process() -> int:
    """The pid of a process that has ended."""
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def test_a_file_is_flushed_before_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, real=real, name=name: (order.append(name), real(*a))[1])
    disk.write_whole(tmp_path / "deep" / "a.txt", "héllo")
    assert order == ["fsync", "replace"]
    assert (tmp_path / "deep" / "a.txt").read_bytes() == "héllo".encode()
    assert os.listdir(tmp_path / "deep") == ["a.txt"]


def test_a_reader_on_windows_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads_until, real = time.monotonic() + 0.1, os.replace

    def replace(*paths: Path) -> None:
        if time.monotonic() < reads_until:
            raise PermissionError(errno.EACCES, "Access is denied")
        real(*paths)

    monkeypatch.setattr(os, "replace", replace)
    disk.write_whole(tmp_path / "run.json", "end")
    assert (tmp_path / "run.json").read_text() == "end"
    reads_until = float("inf")
    monkeypatch.setattr(disk, "_BUSY", 0.1)
    with pytest.raises(PermissionError):
        disk.write_whole(tmp_path / "run.json", "later")
    assert (tmp_path / "run.json").read_text() == "end" and os.listdir(tmp_path) == ["run.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old")

    def half(part: Path) -> None:
        part.write_text("ha")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        disk.write_whole(file, half)
    assert file.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]
    # Cleaning up may fail too. The first error is the one reported.
    monkeypatch.setattr(Path, "unlink", lambda *_a, **_k: (_ for _ in ()).throw(PermissionError("in use")))
    with pytest.raises(OSError, match="No space"):
        disk.write_whole(file, half)


def test_many_writers_at_once(tmp_path: Path) -> None:
    """Threads write one file: a reader always sees one complete version, and no other file is left."""
    file, blobs = tmp_path / "a.bin", [bytes([n]) * 200_000 for n in range(6)]
    seen, done = [], threading.Event()

    def read() -> None:
        while not done.is_set():
            if file.exists():
                seen.append(file.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    writers = [threading.Thread(target=lambda b=b: [disk.write_whole(file, b) for _ in range(10)]) for b in blobs]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    done.set()
    reader.join()
    assert seen and set(seen) <= set(blobs)
    assert os.listdir(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("links", [True, False])
def test_only_one_writer_creates_a_new_file(links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not links:  # as on exFAT and many network disks, whose error is simulated here

        def no_links(*_args: object) -> None:
            raise PermissionError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", no_links)
    won: list[int] = []

    def write(number: int) -> None:
        try:
            disk.write_whole(tmp_path / "a", str(number), overwrite=False)
            won.append(number)
        except FileExistsError:
            pass

    threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and (tmp_path / "a").read_text() == str(won[0])
    assert os.listdir(tmp_path) == ["a"]


def test_a_name_reserved_without_links_is_released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without links the name is reserved first; a failed rename, or Ctrl+C, must not leave an empty file."""

    def fails(*_args: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    def interrupted(*_args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "link", fails)
    for replace, error in ((fails, PermissionError), (interrupted, KeyboardInterrupt)):
        monkeypatch.setattr(os, "replace", replace)
        with pytest.raises(error):
            disk.write_whole(tmp_path / "a.txt", "whole", overwrite=False)
        assert os.listdir(tmp_path) == []


def test_the_first_free_name_is_taken(tmp_path: Path) -> None:
    names = [tmp_path / name for name in ("a", "a-2", "a-3")]
    for expected in names:
        with disk.unfinished(tmp_path) as part:
            part.write_text(expected.name)
            assert disk.give_free_name(part, names) == expected
    with disk.unfinished(tmp_path) as part:
        part.write_text("x")
        with pytest.raises(FileExistsError):
            disk.give_free_name(part, names)
    assert sorted(os.listdir(tmp_path)) == ["a", "a-2", "a-3"]


def test_files_of_ended_processes_are_swept(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    dead = part_of(tmp_path / "deep", ended_process())
    busy = part_of(tmp_path, os.getpid())
    # The pid was reused after the file was written, which is usual in a container.
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    before_it = part_of(tmp_path, child.pid)
    long_ago = psutil.Process(child.pid).create_time() - 60
    os.utime(before_it, (long_ago, long_ago))
    elsewhere, abandoned = part_of(tmp_path, 1, "0badcafe"), part_of(tmp_path, 2, "0badcafe")
    os.utime(abandoned, (time.time() - 90_000,) * 2)
    other = tmp_path / "model.part"
    other.write_text("someone else's")
    assert disk.sweep_unfinished(tmp_path, deep=False) == 2
    assert dead.exists()
    assert disk.sweep_unfinished(tmp_path) == 1
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "deep", busy, elsewhere, other])
    assert disk.sweep_unfinished(tmp_path / "nowhere") == 0
    odd = tmp_path / f".lora_workbench-{disk._MACHINE}-²-7f00-3.part"
    odd.write_text("no pid")
    assert disk.sweep_unfinished(tmp_path) == 0
    child.communicate(b"\n")


def test_a_killed_writer_is_swept(tmp_path: Path) -> None:
    """A real process, killed while it writes."""
    code = (
        "import sys, os; sys.path.insert(0, sys.argv[1]); from pack import register; register()\n"
        "from lora_workbench.training.disk import write_whole\n"
        "from pathlib import Path\n"
        "def slow(part): part.write_text('half'); print('writing', flush=True); sys.stdin.read()\n"
        "write_whole(Path(sys.argv[2]), slow)"
    )
    command = [sys.executable, "-c", code, str(ROOT / "lab"), str(tmp_path / "a")]
    writer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert writer.stdout and writer.stdout.readline() == b"writing\n"
    (part,) = tmp_path.iterdir()
    assert disk.sweep_unfinished(tmp_path) == 0, "it is being written"
    writer.kill()
    writer.communicate()
    assert part.exists() and disk.sweep_unfinished(tmp_path) == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a", "my lora v1.5", "小猫_10", "naïve (1) [x]", "CONtrast", "a..b"])
def test_good_names(name: str) -> None:
    assert disk.safe_name(name) == name
    assert disk.safe_name(name + ".SafeTensors") == name


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "empty"), ("  ", "empty"), (".safetensors", "empty"),
        ("a/b", "slash"), ("a\\b", "slash"), ("../a", "slash"),
        ("..", "dot"), (".a", "dot"), ("a.", "dot"), (" a", "space"), ("a ", "space"),
        ("a:b", "':'"), ("a?", r"'\?'"), ("a*", r"'\*'"), ("<a>", "'<'"), ('"', "system"), ("a|b", "system"),
        ("a\nb", "system"), ("a\0b", "system"), ("a\ud800", "system"),
        ("CON", "Windows"), ("nul.safetensors", "Windows"), ("com1.x", "Windows"),
        ("x" * 121, "too long"), ("猫" * 100, "too long"),
    ],
)  # fmt: skip
def test_bad_names(name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        disk.safe_name(name)
