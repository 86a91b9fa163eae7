"""Train a LoRA on a running ComfyUI with the template lora_5_learn_a_character, and draw a sheet of the results.

    python lab demo --port PORT --base FOLDER

Run `python lab prepare` first. `python dev.py demo` does both and starts the server.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from PIL import Image

from ..pack import ROOT
from .client import Client, ServerError
from .sheet import Row, picture_sheet
from .workflow import WorkflowError, find, to_prompt

WORKFLOW = ROOT / "example_workflows" / "lora_5_learn_a_character.json"
SHEET = Path("output", "lora_workbench", "demo_sheet.png")

# The rows of the sheet: title of the SaveImage node, title and note on the sheet.
ROWS = (
    ("Before", "Before", "without the LoRA"),
    ("Half", "Strength 0.5", "the same noise"),
    ("After", "Strength 1", "the same noise"),
    ("New", "A combination that no caption has", ""),
)
# In a file, which cannot change a line, it is printed again this often.
PRINT_EVERY = 5.0  # seconds
MOST_SHOWN = 24  # training pictures on the sheet


def say(text: str) -> None:
    """Print a line at once."""
    print(f"[demo] {text}", flush=True)


class Line:
    """One line that changes in place on a terminal, and is printed now and then to a file."""

    def __init__(self) -> None:
        self.text = ""
        self._shown = ""
        self._printed = 0.0

    def show(self, text: str) -> None:
        """Replace the line."""
        self.text = text
        if sys.stdout.isatty():
            self._write(self._over(text))
        elif time.monotonic() - self._printed >= PRINT_EVERY:
            self._printed, self._shown = time.monotonic(), text
            say(text)

    def end(self) -> None:
        """Leave the line and continue below it."""
        if sys.stdout.isatty():
            self._write(f"{self._over(self.text)}\n" if self.text else "")
        elif self.text != self._shown:
            say(self.text)
        self.text = self._shown = ""

    @staticmethod
    def _over(text: str) -> str:
        """Text that overwrites the line: cut, because a wrapped line cannot be overwritten, and padded."""
        room = shutil.get_terminal_size().columns - 1
        return "\r" + f"[demo] {text}"[:room].ljust(room)

    @staticmethod
    def _write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


def train(client: Client, prompt: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Run the prompt and print its progress. Return the nodes' outputs and the training's last line."""
    line = Line()
    trainer = find(prompt, "LoRAWorkbench_LoRATrainer")
    prompt[trainer]["inputs"]["if_run_before"] = "train again"  # the demo shows a training
    running, last, since = "", "", 0.0

    def begin(number: str) -> None:
        nonlocal running, last, since
        line.end()
        if running == trainer and last:
            first, _, rest = last.partition("\n")
            took = f"{time.monotonic() - since:.0f} s with encoding"
            say(f"trained in {took}")
            last = f"{first}, {took}\n{rest}"
        running, since = number, time.monotonic()
        if prompt[number]["class_type"] == "KSampler":
            line.show("sampling")

    def tell(text: str) -> None:
        nonlocal last
        # Only one line can change in place; some nodes show more.
        line.show(" · ".join(part.strip() for part in text.splitlines() if part.strip()))
        if running == trainer:
            last = text

    try:
        outputs = client.run(prompt, on_node=begin, on_text=tell)
    finally:
        line.end()
    return outputs, last


def images(client: Client, outputs: dict[str, Any], node: str) -> list[Image.Image]:
    """The pictures of a node's output."""
    return [Image.open(io.BytesIO(client.file(entry))) for entry in outputs[node]["images"]]


def prompt_of(prompt: dict[str, Any], node: str) -> str:
    """The prompt of a SaveImage node's pictures."""
    for name in ("images", "samples", "positive"):
        node = prompt[node]["inputs"][name][0]
    return prompt[node]["inputs"]["text"]


def how_to_sample(prompt: dict[str, Any]) -> str:
    """How the workflow samples the LoRA, in a sentence."""
    after = find(prompt, "SaveImage", "After")
    sampler = prompt[prompt[prompt[after]["inputs"]["images"][0]]["inputs"]["samples"][0]]["inputs"]
    size = prompt[sampler["latent_image"][0]]["inputs"]
    checkpoint = prompt[find(prompt, "CheckpointLoaderSimple")]["inputs"]["ckpt_name"]
    return (
        f"only with the checkpoint {checkpoint}, {size['width']} x {size['height']}, {sampler['steps']} steps, "
        f"CFG {sampler['cfg']:g}, {sampler['sampler_name']}, {sampler['scheduler']}, and a prompt such as "
        f'"{prompt_of(prompt, after)}"'
    )


def pictures_in(folder: Path) -> list[Path]:
    """All pictures below a folder, including a person's own."""
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"))


def training_row(folder: Path, kept: Path) -> Row:
    """The training pictures, the first ones if there are many, and the number of regularization pictures."""
    files, beside = pictures_in(folder), pictures_in(kept)
    shown = files[:MOST_SHOWN]
    note = f"all {len(files)}" if len(files) == len(shown) else f"{len(shown)} of {len(files)}"
    note += f"; also {len(beside)} regularization pictures" if beside else ""
    return Row("Training pictures", note, [Image.open(file) for file in shown])


def draw_sheet(client: Client, prompt: dict[str, Any], outputs: dict[str, Any], base: Path, last: str) -> Path:
    """Write the sheet and return its path."""
    folders = [
        base / "input" / prompt[find(prompt, "LoRAWorkbench_LoadDataset", title)]["inputs"]["folder"]
        for title in ("What it learns", "What the model preserves")
    ]
    rows = [training_row(*folders)]
    for node, title, note in ROWS:
        shown = find(prompt, "SaveImage", node)
        rows.append(Row(title, note or f'"{prompt_of(prompt, shown)}"', images(client, outputs, shown)))
    sheet = picture_sheet(
        "LoRA Workbench demo",
        f'Prompt: "{prompt_of(prompt, find(prompt, "SaveImage", "After"))}"',
        rows,
        (last[:1].upper() + last[1:]).partition("\n")[0],  # the next line is the run's folder
    )
    file = base / SHEET
    file.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(file)
    return file


def main() -> None:
    """Queue the workflow, wait for it and draw the sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True, help="where ComfyUI listens")
    parser.add_argument("--base", type=Path, required=True, help="its base directory")
    args = parser.parse_args()
    args.base = args.base.resolve()
    for stream in (sys.stdout, sys.stderr):  # a Windows console may lack some characters
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    client = Client(args.port)
    try:
        client.wait_until_up()
        prompt = to_prompt(json.loads(WORKFLOW.read_text(encoding="utf-8")), client.get("/object_info"))
        say(f"queueing {WORKFLOW.relative_to(ROOT)}")
        outputs, last = train(client, prompt)
        sheet = draw_sheet(client, prompt, outputs, args.base, last)
    except (ServerError, WorkflowError, OSError) as error:
        raise SystemExit(f"[demo] {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("[demo] stopped") from None
    lora = Path(outputs[find(prompt, "LoRAWorkbench_SaveLoRA")]["text"][0])
    say(f"picture sheet: {sheet}")
    say(f"LoRA: {lora}")
    loras = args.base / "models" / "loras"
    say(f"to use it: Load LoRA, lora_name {lora.relative_to(loras) if lora.is_relative_to(loras) else lora.name}")
    say(f"  {how_to_sample(prompt)}")
