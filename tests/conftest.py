"""What every test stands on: the pack as a package, and a ComfyUI to import or to talk to."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from support.server import ComfyServer

# One thread for each worker of pytest-xdist, and for the server that it starts. torch reads this at import.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]
DEFAULT_HOST = ROOT / ".host" / "ComfyUI-0.3.75"

# `python -m pytest` puts the current folder there. Our folder `nodes` must not shadow ComfyUI's own nodes.py.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != ROOT]


# By its file, since it is what makes the pack importable.
_spec = spec_from_file_location("_pack", ROOT / "lab" / "pack.py")
assert _spec and _spec.loader
_pack = module_from_spec(_spec)
_spec.loader.exec_module(_pack)
_pack.register()
_pack.register("support", ROOT / "tests" / "support")


class _RootIsAPlainFolder:
    """Keeps pytest from importing the repository root as a package of tests because it has an __init__.py."""

    @staticmethod
    def pytest_collect_directory(path: Path, parent: pytest.Collector) -> pytest.Collector | None:
        return pytest.Dir.from_parent(parent, path=path) if path == ROOT else None


def pytest_configure(config: pytest.Config) -> None:
    # As a plugin: pytest asks a conftest's own hooks only about what lies beside or below it.
    config.pluginmanager.register(_RootIsAPlainFolder())


# The files whose tests use the server. One worker of pytest-xdist runs those of the browser and one the others, so that
# two servers start.
ON_SERVER = (
    "tests/browser/", "tests/host/lab/test_demo.py", "tests/host/test_dataset_nodes.py",
    "tests/host/test_estimate_node.py", "tests/host/test_option_nodes.py", "tests/host/test_run_report.py",
    "tests/host/test_run_routes.py", "tests/host/test_run_settings.py", "tests/host/test_runs_on_disk.py",
    "tests/host/test_server.py", "tests/host/test_shown.py", "tests/host/test_support_server.py",
    "tests/host/test_workflows.py",
)  # fmt: skip
# Long ones first, so that the workers end together.
ORDER = (*ON_SERVER, "tests/host/", "tests/unit/lab/", "tests/unit/captions/", "tests/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests in the order of ORDER."""
    for item in items:
        if "server" in getattr(item, "fixturenames", ()) and not item.nodeid.startswith((*ON_SERVER, "tests/unit/")):
            raise pytest.UsageError(f"{item.nodeid} uses the server. Add its file to ON_SERVER in tests/conftest.py.")
    items.sort(key=lambda item: next((n for n, place in enumerate(ORDER) if item.nodeid.startswith(place)), len(ORDER)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Let `--dist loadfile` treat the files of the browser as one file, and the others of ON_SERVER as another.

    `--dist loadgroup` is meant for this, but pytest-xdist 3.8 loses the groups under pytest 9.2.
    """
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            if not nodeid.startswith(ON_SERVER):
                return nodeid.partition("::")[0]
            return "browser" if nodeid.startswith(ON_SERVER[0]) else "server"

    return ByFile(config, log)


@dataclass(frozen=True)
class Host:
    """The ComfyUI that the tests run against.

    Attributes:
        path: Its folder, the one with main.py.
        version: Such as (0, 3, 75).
        base: The base directory (models, input, output, temp) of this process.
    """

    path: Path
    version: tuple[int, ...]
    base: Path


@pytest.fixture(scope="session")
def host_path() -> Path:
    """The folder of the ComfyUI under test: COMFYUI_PATH, else the one that dev.py unpacks."""
    path = Path(os.environ.get("COMFYUI_PATH") or DEFAULT_HOST).expanduser().resolve()
    if not (path / "main.py").is_file():
        pytest.skip(f"no ComfyUI in {path}: set COMFYUI_PATH, or run `python dev.py test` once")
    return path


@pytest.fixture(scope="session")
def comfy_host(host_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Host:
    """ComfyUI importable in this process, with an empty base directory of its own.

    It computes on the CPU, where numbers are the same everywhere, unless TEST_ON_GPU is set.
    """
    if str(host_path) not in sys.path:
        sys.path.insert(0, str(host_path))
    import comfy.options
    import torch

    comfy.options.enable_args_parsing(False)  # or the host would parse pytest's command line
    from comfy.cli_args import args

    base = tmp_path_factory.mktemp("comfy_base")
    args.cpu = not os.environ.get("TEST_ON_GPU")
    if not args.cpu:  # as exact as there
        args.force_fp32 = True
        torch.backends.cudnn.allow_tf32 = False
        torch.use_deterministic_algorithms(True, warn_only=True)  # what the host's --deterministic does
    args.base_directory = str(base)
    import folder_paths  # reads args.base_directory once, at import
    from comfyui_version import __version__

    assert Path(folder_paths.base_path) == base, "folder_paths was imported before the fixture comfy_host"
    return Host(host_path, tuple(int(part) for part in __version__.split(".")[:3]), base)


@pytest.fixture(scope="session")
def small_models_folder(comfy_host: Host) -> Path:
    """Where small model files are kept between sessions (their names carry a hash of what is in them)."""
    folder = ROOT / ".host" / ("small-models-" + ".".join(map(str, comfy_host.version)))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoint(small_models_folder: Path) -> Path:
    """A complete small SD 1.5 checkpoint: MODEL, CLIP and VAE, 300 MB."""
    from support import small_models

    return small_models.cached(small_models.checkpoint_sd15, small_models_folder)


@pytest.fixture(scope="session")
def base_checkpoint() -> Path:
    """The shipped base model, put together into a checkpoint."""
    from lora_workbench.lab.base_model.assemble import assemble

    file = ROOT / ".host" / "base_model.safetensors"
    assemble(file)
    return file


# Where the server must find and remove what an earlier process left unfinished.
STALE = ("output/lora_workbench/cache/latents/ab", "models/loras", "temp/lora_workbench")


def _unfinished_of_an_ended_process() -> str:
    from lora_workbench.training import disk

    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return f".lora_workbench-{disk._MACHINE}-{ended.pid}-7f00-0.part"


@pytest.fixture(scope="session")
def server(
    host_path: Path, tiny_checkpoint: Path, base_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ComfyServer]:
    """A running ComfyUI with the pack, one for the whole session (it takes 10 s to start).

    It has the checkpoint `tiny_sd15.safetensors` and a LoRA of it, `tiny_lora.safetensors`, the base model and its
    pictures as the demo lays them out, captioned photos in `input/photos/2_photo`, one of them with a mask, and the
    captioner `tiny_tagger`.
    """
    from PIL import Image
    from support import small_models
    from support.photos import write_photos
    from support.server import ComfyServer
    from support.taggers import tagger

    base = tmp_path_factory.mktemp("server_base")
    checkpoints = base / "models" / "checkpoints"
    checkpoints.mkdir(parents=True)
    for source, name in ((tiny_checkpoint, "tiny_sd15"), (base_checkpoint, "lora_workbench_base")):
        target = checkpoints / f"{name}.safetensors"
        try:
            os.link(source, target)
        except OSError:  # another disk
            shutil.copyfile(source, target)
    subprocess.run([sys.executable, str(ROOT / "lab"), "prepare", "--base", str(base)], check=True)
    photo = write_photos(base / "input" / "photos" / "2_photo", longest=256)[0]
    with Image.open(photo) as image:
        Image.linear_gradient("L").resize(image.size).save(photo.with_name(f"{photo.stem}_mask.png"))
    tagger(base / "models" / "LLM" / "tiny_tagger")
    (base / "models" / "loras").mkdir()
    small_models.lora_sd15(base / "models" / "loras" / "tiny_lora.safetensors")
    for folder in STALE:
        (base / folder).mkdir(parents=True, exist_ok=True)
        (base / folder / _unfinished_of_an_ended_process()).write_text("half a file")
    with ComfyServer(host_path, base) as running:
        yield running
