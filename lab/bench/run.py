"""The benchmarks: each prints what one run measured.

    python dev.py bench [step] [launches] [dataset] [cards] [rungs] [forecast] [watching]
                        [learning] [defaults] [--write]
    python dev.py bench pages

step: time and memory of a training step, a quarter of an hour. launches: what a step costs besides arithmetic, two
minutes. dataset: reading and examining ten thousand pictures, a minute. cards: how models fit into cards, by estimate,
a minute. rungs: memory and time of each way to fit into memory, a quarter of an hour and 20 GB. forecast: the time that
Estimate Training gives and that of a real run, a few minutes. watching: what panel, logs and samples cost, a few
minutes. learning: what a LoRA learns and spoils, two or three
hours on two cores. defaults: the effect of each setting, longer still and only run by name. `--write` stores rows in
lab/bench/results/ and rewrites the tables of docs/. pages: rewrite the tables of docs/ from the stored rows, without
measuring. On a GPU machine, `python lab gpu` checks and measures the engine.
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
from .machine import measured_on
from .results import Column, Row, launches_table, store, table


def measure(command: str, *arguments: object) -> dict | None:
    """Run one case in a process of its own, so that no case inherits another's memory."""
    line = [sys.executable, str(ROOT / "lab"), command, *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, env=os.environ | {"PYTHONWARNINGS": "ignore"})
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            return json.loads(line.removeprefix("RESULT "))
    print(done.stderr[-2000:], file=sys.stderr)
    return None


def dataset_benchmark(count: int, host_count: int = 100) -> list[Row]:
    """Time and memory of reading and examining many pictures, and of ComfyUI's loader on a few of them."""
    from .dataset_scale import make_pictures

    (ROOT / ".host").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / ".host") as folder:
        many, few = Path(folder, "many"), Path(folder, "few")
        make_pictures(many, count)
        make_pictures(few, host_count)
        if hasattr(os, "sync"):  # not on Windows
            os.sync()  # writing the pictures must not slow down reading them
        ours, host = (measure("dataset_scale", *case) for case in (("ours", many), ("host", few)))
    if ours is None or host is None:
        raise SystemExit("The dataset benchmark failed. Read the error above.")
    total = sum(ours["seconds"].values())
    shares = {name: round(100 * seconds / total, 1) for name, seconds in ours["seconds"].items()}
    time = (host["seconds"]["loading"] / host["pictures"]) / (total / ours["pictures"])
    memory = (host["growth"] / host["pictures"]) / (ours["growth"] / ours["pictures"])
    return [
        {**measured_on(), "loader": "LoRA Workbench", "pictures": ours["pictures"], "seconds": round(total, 1),
         "memory_mib": round(ours["growth"] / 2**20), **shares, "time_of_ours": 1, "memory_of_ours": 1},
        {**measured_on(), "loader": "LoadImageTextDataSetFromFolder", "pictures": host["pictures"],
         "seconds": round(host["seconds"]["loading"], 1), "memory_mib": round(host["growth"] / 2**20),
         "time_of_ours": round(time, 2), "memory_of_ours": round(memory)},
    ]  # fmt: skip


WHAT = ("step", "launches", "dataset", "cards", "rungs", "forecast", "watching", "learning", "defaults")
# The first seed of the learning benchmark. Settings were chosen on the seeds from 0 on. Results on the seeds from 100,
# 200, 300, 400 and 500 on were seen while settings still changed, those from 600 on while the judge still changed.
FIRST_REPORTED = 700
# Pictures for what is obeyed and prompts for what is lost, by default.
AMOUNTS = {"learning": (48, 192), "defaults": (16, 48)}
HOST = ("comfyui", "gpu")
JUDGED = {
    "likeness": Column({"seed": "mean"}, "likeness", 2), "shown, %": Column({"seed": "mean"}, "shown", 0),
    "lost of 100": Column({"seed": "mean"}, "lost", 1), "leaked of 100": Column({"seed": "mean"}, "leaked", 1),
}  # fmt: skip


def measured(what: str, args: argparse.Namespace) -> Iterator[tuple[list[Row], tuple[str, ...], str]]:
    """Run one benchmark and yield its rows as soon as they are measured.

    Yields:
        (rows, columns, table): stored rows that agree with the new ones in these columns are replaced.
    """
    if what == "step":
        from .step_time import step_benchmark

        rows = step_benchmark(args.pairs, args.only)
        columns = {name: Column({}, name, 2) for name in ("time_of_floor", "memory_of_host")}
        yield rows, (*HOST, "trainer", "precision") if args.only else HOST, table(rows, "trainer", columns)
        return
    start_host()
    if what == "launches":
        from .launches import launches_benchmark

        rows = launches_benchmark(5 * args.pairs, "sd15" if args.full else "sd15-narrow")
        yield rows, HOST, launches_table(rows)
        return
    if what == "cards":
        from .cards import card_table, cards_benchmark

        for rows in cards_benchmark(args.only):
            yield rows, ("model", "card"), card_table(rows)
        return
    if what == "rungs":
        from .rungs import rungs_benchmark, rungs_table

        rows = rungs_benchmark(*(("sdxl-narrow", 128) if args.tiny else ()))
        yield rows, HOST, rungs_table(rows)
        return
    if what == "forecast":
        from .forecast import forecast_benchmark, forecast_table

        rows = forecast_benchmark()
        yield rows, (*HOST, "what"), forecast_table(rows)
        return
    if what == "watching":
        from .watching import watching_benchmark, watching_table

        rows = watching_benchmark()
        yield rows, (*HOST, "what"), watching_table(rows)
        return
    count, scenes = AMOUNTS.get(what, (0, 0))
    count, scenes = args.count or count, args.scenes or scenes
    if what == "dataset":
        rows = dataset_benchmark(args.pictures)
        columns = {name: Column({}, name, 1) for name in ("seconds", "memory_mib", "time_of_ours", "memory_of_ours")}
        yield rows, HOST, table(rows, "loader", columns)
    elif what == "learning":
        from .learning import learning_benchmark

        seeds = range(FIRST_REPORTED, FIRST_REPORTED + args.seeds)
        for rows in learning_benchmark(args.concepts, seeds, count, scenes):
            yield rows, (*HOST, "character"), table(rows, "trainer", JUDGED)
    else:
        from .defaults import defaults_benchmark

        for rows in defaults_benchmark(range(args.seeds), count, scenes, args.only):
            yield rows, (*HOST, "setting"), table(rows, "value", JUDGED)


def main() -> None:
    """Run the named benchmarks; all but defaults by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", metavar="|".join((*WHAT, "pages")))
    parser.add_argument("--pairs", type=int, default=12, help="step, launches: how often cases are compared")
    parser.add_argument("--full", action="store_true", help="launches: count on the full-size model, 8 GB")
    parser.add_argument("--tiny", action="store_true", help="rungs: a narrow model, only to see that it works")
    parser.add_argument("--pictures", type=int, default=10_000, help="dataset: how many")
    parser.add_argument("--seeds", type=int, default=3, help="learning, defaults: runs of each case")
    parser.add_argument("--count", type=int, help="learning, defaults: pictures for what is obeyed")
    parser.add_argument("--scenes", type=int, help="learning, defaults: prompts for what is lost")
    parser.add_argument("--concepts", nargs="+", default=["zorp", "gub"], help="learning: these characters")
    parser.add_argument("--only", nargs="+", default=[], help="step, cards, defaults: only these")
    parser.add_argument("--write", action="store_true", help="store the rows and rewrite the tables of docs/")
    args = parser.parse_args()
    for what in args.what:
        if what not in (*WHAT, "pages"):
            parser.error(f"{what!r} is not a benchmark. Choose from {', '.join((*WHAT, 'pages'))}.")
    if hasattr(sys.stdout, "reconfigure"):  # a log on Windows may lack some characters of a table
        sys.stdout.reconfigure(errors="replace")
    from .pages import write_pages

    for what in args.what or WHAT[:-1]:
        if what == "pages":
            write_pages()
            continue
        for rows, same, text in measured(what, args):
            if args.write:
                store(what, rows, same)
                write_pages()
            print("\n" + text, flush=True)
