"""Train a LoRA on a running ComfyUI with the example workflow, at a size for two CPU cores, and show it in one picture.

    python demo/run.py --port PORT --base FOLDER

`demo/prepare.py` has laid out what it trains on. `python dev.py demo` does both and starts the server between.
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

from client import Client, ServerError
from PIL import Image
from sheet import Row, picture_sheet
from workflow import WorkflowError, find, set_values, to_prompt

ROOT = Path(__file__).resolve().parents[1]
WORKFLOW = ROOT / "example_workflows" / "train_and_preview.json"
SHEET = Path("output", "lora_workbench", "demo_sheet.png")

RESOLUTION = 256
EPOCHS = 2
SAMPLES = 4
SAMPLER_STEPS = 6
# Where nobody watches the line change, it is printed anew this often.
PRINT_EVERY = 5.0  # seconds


def say(text: str) -> None:
    print(f"[demo] {text}", flush=True)


class Line:
    """One line that changes in place on a terminal, and is printed now and then into a file."""

    def __init__(self) -> None:
        self.text = ""
        self._shown = ""
        self._printed = 0.0

    def show(self, text: str) -> None:
        """Replace the line."""
        self.text = text
        if sys.stdout.isatty():
            # A line that wraps could not be taken back.
            self._write(f"\r\x1b[K[demo] {text}"[: shutil.get_terminal_size().columns + 3])
        elif time.monotonic() - self._printed >= PRINT_EVERY:
            self._printed, self._shown = time.monotonic(), text
            say(text)

    def end(self) -> None:
        """Leave the line as it is and go on below it."""
        if sys.stdout.isatty():
            self._write(f"\r\x1b[K[demo] {self.text}\n" if self.text else "")
        elif self.text != self._shown:
            say(self.text)
        self.text = self._shown = ""

    @staticmethod
    def _write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


def demo_prompt(object_info: dict[str, Any]) -> dict[str, Any]:
    """The example workflow, smaller: some epochs of small pictures on a small model take about a minute."""
    prompt = to_prompt(json.loads(WORKFLOW.read_text(encoding="utf-8")), object_info)
    set_values(prompt, "LoRAWorkbench_BucketImages", resolution=RESOLUTION)
    set_values(prompt, "LoRAWorkbench_LoRATrainer", epochs=EPOCHS)
    set_values(prompt, "LoRAWorkbench_SaveLoRA", overwrite=True)
    set_values(prompt, "EmptyLatentImage", width=RESOLUTION, height=RESOLUTION, batch_size=SAMPLES)
    set_values(prompt, "KSampler", steps=SAMPLER_STEPS)
    return prompt


def train(client: Client, prompt: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Run the prompt, telling of its progress. Return what nodes showed and the last line of the training."""
    line = Line()
    trainer = find(prompt, "LoRAWorkbench_LoRATrainer")
    running, last = "", ""

    def begin(number: str) -> None:
        nonlocal running
        line.end()
        running = number
        if prompt[number]["class_type"] == "KSampler":
            line.show("sampling")

    def tell(text: str) -> None:
        nonlocal last
        # In place is one line; some nodes say more.
        line.show(" · ".join(part.strip() for part in text.splitlines() if part.strip()))
        if running == trainer:
            last = text

    try:
        outputs = client.run(prompt, on_node=begin, on_text=tell)
    finally:
        line.end()
    return outputs, last


def images(client: Client, outputs: dict[str, Any], node: str) -> list[Image.Image]:
    """The pictures that a node showed."""
    return [Image.open(io.BytesIO(client.file(entry))) for entry in outputs[node]["images"]]


def training_pictures(folder: Path) -> list[Image.Image]:
    """Every picture below a folder."""
    files = sorted(file for file in folder.rglob("*") if file.suffix in (".png", ".jpg"))
    return [Image.open(file) for file in files]


def draw_sheet(client: Client, prompt: dict[str, Any], outputs: dict[str, Any], base: Path, last: str) -> Path:
    """Write the sheet and return where it is."""
    folder = base / "input" / prompt[find(prompt, "LoRAWorkbench_LoadDataset")]["inputs"]["folder"]
    text = prompt[find(prompt, "CLIPTextEncode", "Prompt")]["inputs"]["text"]
    pictures = training_pictures(folder)
    rows = [Row("Training pictures", f"{len(pictures)}, scaled to an area of {RESOLUTION} x {RESOLUTION}", pictures)]
    for title, note in (("Before", "without the LoRA"), ("After", "with the LoRA, the same seeds")):
        rows.append(Row(title, note, images(client, outputs, find(prompt, "SaveImage", title))))
    sheet = picture_sheet(
        "LoRA Workbench demo",
        f'Prompt: "{text}"',
        rows,
        (last[:1].upper() + last[1:]).partition("\n")[0],  # below it comes where the run lies
    )
    file = base / SHEET
    file.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(file)
    return file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True, help="where ComfyUI listens")
    parser.add_argument("--base", type=Path, required=True, help="its base directory")
    args = parser.parse_args()
    client = Client(args.port)
    try:
        client.wait_until_up()
        prompt = demo_prompt(client.get("/object_info"))
        say(f"queueing {WORKFLOW.relative_to(ROOT)} at {RESOLUTION} x {RESOLUTION}, {EPOCHS} epochs")
        outputs, last = train(client, prompt)
        sheet = draw_sheet(client, prompt, outputs, args.base, last)
    except (ServerError, WorkflowError, OSError) as error:
        raise SystemExit(f"[demo] {error}") from None
    lora = Path(outputs[find(prompt, "LoRAWorkbench_SaveLoRA")]["text"][0])
    say(f"picture sheet: {sheet}")
    say(f"LoRA: {lora}")
    say(f"to use it: Load LoRA, lora_name {lora.relative_to(args.base / 'models' / 'loras')}")
    say("the demo's base model has random weights: before and after are noise, different noise. A real checkpoint "
        "gives pictures.")


if __name__ == "__main__":
    main()
