"""The benchmarks: each prints what was measured in one run, and `--write` puts it into docs/.

    python dev.py bench [step] [dataset] [learning] [defaults] [--write]

step: time and memory of a training step, ten minutes. dataset: reading and examining ten thousand pictures, a minute.
learning: what a LoRA learns and spoils, two or three hours on two cores. defaults: what each default is worth, longer
still and not run unless named.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..pack import ROOT
from .host import start_host
from .machine import describe_machine, gpu_name, host_version, table_name

DOCS = ROOT / "docs" / "benchmarks.md"

CASES = [
    ("floor", "fp32", "the frozen model alone, forward and backward (plain PyTorch)"),
    ("ours", "fp32", "LoRA Workbench"),
    ("host", "fp32", "ComfyUI's TrainLoraNode"),
    ("host-bypass", "fp32", "ComfyUI's TrainLoraNode, bypass mode"),
    ("ours-batch4", "fp32", "LoRA Workbench, batch of 4"),
    ("ours-checkpointing", "fp32", "LoRA Workbench, gradient checkpointing"),
    ("floor", "bf16", "the frozen model alone, bf16"),
    ("ours", "bf16", "LoRA Workbench, bf16"),
    ("host", "bf16", "ComfyUI's TrainLoraNode, bf16"),
]


# Close to each other, so measured in turns and the best of each counts: one slow moment of the machine decides nothing.
IN_TURNS = [("floor", "fp32"), ("ours", "fp32")]


def measure(command: str, *arguments: object) -> dict | None:
    """Run one case in a process of its own, so that no case inherits another's memory."""
    line = [sys.executable, str(ROOT / "lab"), command, *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, env=os.environ | {"PYTHONWARNINGS": "ignore"})
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            return json.loads(line.removeprefix("RESULT "))
    print(done.stderr[-2000:], file=sys.stderr)
    return None


def step_benchmark(steps: int, turns: int) -> str:
    """Step time and memory growth of one SD1.5 training step; returns a table of ratios."""
    version, side = host_version(), 512 if gpu_name() else 256
    cases = [c for c in CASES if c[0] != "host-bypass" or version != "0.3.75"]  # bypass mode is newer
    file = ROOT / ".host" / "bench" / "sd15_full.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    results: dict[tuple[str, str], dict] = {}
    texts = {(case, precision): text for case, precision, text in cases}
    for case, precision in IN_TURNS * turns + [key for key in texts if key not in IN_TURNS]:
        print(f"measuring: {texts[case, precision]} …", flush=True)
        found = measure("step_time", case, file, "--steps", steps, "--precision", precision, "--side", side)
        if found:
            results[case, precision] = min(found, results.get((case, precision), found), key=lambda r: r["seconds"])
            print(f"  {found['seconds']:.3f} s a step, memory +{found['growth'] / 2**30:.2f} GiB", flush=True)
    lines = [
        f"Full-size SD1.5 UNet (859.5 M parameters, random weights), {side} px, batch 1 unless said, rank 16, AdamW, "
        f"no checkpointing unless said. {describe_machine()} Median of {steps} steps; the first two rows are the best "
        f"of {turns} such runs in turns.",
        "",
        "| | step time, of the floor | memory growth, of the host's trainer |",
        "| --- | --- | --- |",
    ]
    for case, precision, text in cases:
        if (case, precision) not in results:
            lines.append(f"| {text} | failed | |")
            continue
        found, floor = results[case, precision], results["floor", precision]
        host = results.get(("host", precision))
        memory = f"{found['growth'] / host['growth']:.2f} ×" if host else ""
        lines.append(f"| {text} | {found['seconds'] / floor['seconds']:.2f} × | {memory} |")
    told = ("ours", "host", "ours-batch4")
    if not all((case, "fp32") in results for case in told):
        return "\n".join(lines)
    ours, host, batch = (results[case, "fp32"] for case in told)
    lines += [
        "",
        f"ComfyUI's trainer takes {host['seconds'] / ours['seconds']:.1f} × the time of ours and "
        f"{host['growth'] / ours['growth']:.1f} × the memory. A batch of 4 costs "
        f"{batch['seconds'] / ours['seconds']:.2f} × a batch of 1.",
    ]
    return "\n".join(lines)


def dataset_benchmark(count: int, host_count: int = 100) -> str:
    """Time and memory of reading and examining many pictures, beside the host's loader on few of them."""
    from .dataset_scale import make_pictures

    (ROOT / ".host").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / ".host") as folder:
        many, few = Path(folder, "many"), Path(folder, "few")
        make_pictures(many, count)
        make_pictures(few, host_count)
        if hasattr(os, "sync"):  # not on Windows
            os.sync()  # gigabytes that are still being written are nobody's reading time
        ours, host = (measure("dataset_scale", *case) for case in (("ours", many), ("host", few)))
    if ours is None or host is None:
        raise SystemExit("The dataset benchmark failed; what was printed above says why.")
    total = sum(ours["seconds"].values())
    ratio = (host["seconds"]["loading"] / host["pictures"]) / (total / ours["pictures"])
    memory = (host["growth"] / host["pictures"]) / (ours["growth"] / ours["pictures"])
    parts = ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in ours["seconds"].items())
    return "\n".join([
        f"{ours['pictures']} JPEGs of 1024 × 1024, read, hashed, examined and bucketed in {total:.0f} s, memory growth "
        f"{ours['growth'] / 2**20:.0f} MiB ({parts}). {describe_machine()}",
        "",
        f"ComfyUI's LoadImageTextDataSetFromFolder, on {host['pictures']} of them, takes {ratio:.1f} × the time and "
        f"{memory:.0f} × the memory for each: it decodes all of every picture and holds it.",
    ])  # fmt: skip


def write_table(page: Path, name: str, table: str) -> None:
    """Replace one table of a page of docs/, between its two marker comments; without them it goes to the page's end."""
    start, end = f"<!-- {name} -->", f"<!-- end {name} -->"
    text = page.read_text(encoding="utf-8")
    if start not in text or end not in text:
        text += f"\n## {name}\n\n{start}\n{end}\n"
    before, rest = text.split(start, 1)
    after = rest.split(end, 1)[1]
    part = page.with_suffix(f".{os.getpid()}.part")  # a long benchmark may run as two processes
    part.write_text(f"{before}{start}\n{table}\n{end}{after}", encoding="utf-8")
    part.replace(page)


WHAT = ("step", "dataset", "learning", "defaults")
# The seeds of the learning benchmark begin here: settings were chosen on those from 0 on, and what was told on those
# from 100, 200, 300, 400 and 500 on was seen while settings still changed, on those from 600 on while the judge did.
FIRST_REPORTED = 700
# Pictures for what is obeyed and prompts for what is lost, where none are asked for.
AMOUNTS = {"learning": (48, 192), "defaults": (16, 48)}


def measured(what: str, args: argparse.Namespace) -> Iterator[tuple[Path, str, str]]:
    """Run one benchmark; yields each table as soon as it is there, behind its page and its place there."""
    if what == "step":
        yield DOCS, table_name("step"), step_benchmark(args.steps, args.turns)
        return
    start_host()
    count, scenes = AMOUNTS.get(what, (0, 0))
    count, scenes = args.count or count, args.scenes or scenes
    if what == "dataset":
        yield DOCS, table_name("dataset"), dataset_benchmark(args.pictures)
    elif what == "learning":
        from .learning import learning_benchmark

        seeds = range(FIRST_REPORTED, FIRST_REPORTED + args.seeds)
        for concept, table in learning_benchmark(args.concepts, seeds, count, scenes):
            yield DOCS, table_name(f"learning {concept}"), table
    else:
        from .defaults import defaults_benchmark

        for name, table in defaults_benchmark(range(args.seeds), count, scenes, args.only):
            yield DOCS.with_name("defaults.md"), name, table


def main() -> None:
    """Run the benchmarks that were asked for; all but defaults by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", metavar="|".join(WHAT))
    parser.add_argument("--steps", type=int, default=6, help="step: steps of each case")
    parser.add_argument("--turns", type=int, default=3, help="step: runs of the cases that lie close together")
    parser.add_argument("--pictures", type=int, default=10_000, help="dataset: how many")
    parser.add_argument("--seeds", type=int, default=3, help="learning, defaults: runs of each case")
    parser.add_argument("--count", type=int, help="learning, defaults: pictures for what is obeyed")
    parser.add_argument("--scenes", type=int, help="learning, defaults: prompts for what is lost")
    parser.add_argument("--concepts", nargs="+", default=["zorp", "gub"], help="learning: on what")
    parser.add_argument("--only", nargs="+", default=[], help="defaults: these settings")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/")
    args = parser.parse_args()
    for what in args.what:
        if what not in WHAT:
            parser.error(f"there is no benchmark {what!r}: {', '.join(WHAT)}")
    if hasattr(sys.stdout, "reconfigure"):  # a log on Windows may not know every sign of a table
        sys.stdout.reconfigure(errors="replace")
    for what in args.what or WHAT[:3]:
        for page, name, table in measured(what, args):
            if args.write:
                write_table(page, name, table)
            print("\n" + table, flush=True)
