"""The diffs of CONTRIBUTING.md, applied to a copy of the pack: short, and enough to add what they add."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
DIFFS = dict(re.findall(r"^## Add an? (\w+)\n.*?```diff\n(.*?)```", PAGE, re.MULTILINE | re.DOTALL))

# Run in a process of its own: the copy takes the pack's name.
CHECK = '''
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
from pack import register

register()
sys.path.pop(0)
from lora_workbench.lab.standalone import start_standalone

start_standalone(cpu=True)
import torch
from PIL import Image
from lora_workbench.lab import help_pages
from lora_workbench.nodes import NODES
from lora_workbench.training.captions import sources
from lora_workbench.training.config import TrainConfig, kohya_settings
from lora_workbench.training.data.dataset import Dataset, Picture
from lora_workbench.training.files.metadata import ModelFacts, Session, build_metadata
from lora_workbench.training.lora import RunSummary
from lora_workbench.training.optimizers import optimizer_class

nodes = {node.__name__: node for node in NODES}

# The setting: in the node, last; in the help table; in the metadata; held to its bounds.
trainer = nodes["LoRATrainer"]
assert [one.id for one in trainer.define_schema().inputs][-1] == "max_grad_value"
table = help_pages.tables(trainer)
assert "| `max_grad_value` (advanced) | 0 | 0 to 1000 | Clips every value of the gradient" in table, table
config = TrainConfig(max_grad_value=0.5, optimizer="AdaBelief", timesteps="uniform", precision="fp32")
dataset = Dataset((Picture(Path("a.png"), (8, 8), "a"),))
metadata = build_metadata(
    kohya_settings(config, {}), RunSummary("a", "a"), dataset, ModelFacts("SD15"), Session(1, 0.0, 1.0, 1)
)
assert metadata["lora_workbench.max_grad_value"] == "0.5"
try:
    TrainConfig(max_grad_value=-1)
    raise SystemExit("a value out of bounds was taken")
except ValueError as error:
    assert "max grad value is -1. Set it to at least 0" in str(error), error

# The optimizer: a choice of the node, in the metadata, and it lowers a loss.
assert "AdaBelief" in trainer.GET_NODE_INFO_V1()["input"]["required"]["optimizer"][1]["options"]
assert metadata["ss_optimizer"] == "pytorch_optimizer.AdaBelief(weight_decay=0.01,rectify=False)"
weight = torch.ones(3, requires_grad=True)
optimizer = optimizer_class("AdaBelief")([weight], lr=0.1, rectify=False)
for _ in range(5):
    optimizer.zero_grad()
    weight.square().sum().backward()
    optimizer.step()
assert weight.square().sum() < 2

# The captioner: found by its file.
folder = Path(sys.argv[2])
folder.mkdir()
(folder / "brightness.txt").write_text("dark\\nbright")
captioner = sources.make_captioner(folder, {})
assert captioner.caption([Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8), "white")]) == ["dark", "bright"]

# The node: it has an id of the pack and runs.
node = nodes["CountPictures"]
assert node.GET_SCHEMA().node_id == "LoRAWorkbench_CountPictures"
node.show = lambda text: print(text)
assert node.execute(dataset).result == (1,)
print("all four work")
'''


def test_each_diff_is_short() -> None:
    assert list(DIFFS) == ["setting", "optimizer", "captioner", "node"]
    for name, diff in DIFFS.items():
        added = [line for line in diff.splitlines() if line.startswith("+") and not line.startswith("+++")]
        assert 0 < len(added) <= 30, name


def test_the_diffs_add_what_they_say(host_path: Path, tmp_path: Path) -> None:
    if not shutil.which("git"):
        pytest.skip("git applies the diffs, and this machine has none")
    copy = tmp_path / "pack"
    for folder in ("nodes", "training", "lab"):
        ignored = shutil.ignore_patterns("__pycache__", "*.safetensors")
        shutil.copytree(ROOT / folder, copy / folder, ignore=ignored)
    for name, diff in DIFFS.items():
        command = ["git", "apply", "--unidiff-zero", "-"]
        done = subprocess.run(command, cwd=copy, input=diff, text=True, capture_output=True)
        assert done.returncode == 0, f"{name}: {done.stderr}"
    command = [sys.executable, "-c", CHECK, str(copy / "lab"), str(tmp_path / "captioner")]
    done = subprocess.run(command, env={**os.environ, "COMFYUI_PATH": str(host_path)}, text=True, capture_output=True)
    assert done.returncode == 0 and "all four work" in done.stdout, done.stderr
