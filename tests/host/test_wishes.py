"""What the panel's buttons ask of a run: save now, stop and keep, stop and discard. And what keeps a run going."""

from __future__ import annotations

import gc
import json
import shutil

import pytest
import torch
from lora_workbench.training.errors import UserError
from lora_workbench.training.events import Cancelled, SilentSink
from support.rig import Snapshot
from support.session import loaded, photos, train


@pytest.fixture(scope="module")
def checkpoint(comfy_host, tiny_checkpoint):
    return loaded(tiny_checkpoint)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return photos(tmp_path_factory.mktemp("data") / "1_photo")


class Asking(SilentSink):
    """Asks something of the run when a step is reported."""

    def __init__(self, wish: str, step: int = 2) -> None:
        self.asks, self.at, self.id, self.taken = wish, step, "", False

    def record(self, run: str, line: dict) -> None:
        """Ask once the step's line comes."""
        from lora_workbench.training.run.under_way import known

        self.id = run
        if line["kind"] == "step" and line["step"] == self.at:
            known(run).wish(self.asks)

    def take_cancel(self) -> None:
        """Take note."""
        self.taken = True


def test_save_now(checkpoint, dataset, tmp_path):
    plain = train(checkpoint, dataset, tmp_path, steps=4)
    result = train(checkpoint, dataset, tmp_path, Asking("save"), name="asked", steps=4)
    folder = tmp_path / "runs" / "asked"
    (file,) = folder.glob("asked-step*.safetensors")
    assert result.summary.checkpoints == (str(file),) and result.summary.outcome == "finished"
    lines = [json.loads(row) for row in (folder / "log.jsonl").read_text().splitlines()]
    (mark,) = [line for line in lines if line["kind"] == "checkpoint"]
    assert mark["file"] == file.name and file.name.endswith(f"{mark['step']:08d}.safetensors")
    assert all(torch.equal(plain.lora[name], tensor) for name, tensor in result.lora.items())
    told = json.loads((folder / "run.json").read_text())
    assert told["outcome"] == "finished" and told["steps"] == 4 and told["id"] == result.summary.id


def test_stop_and_keep(checkpoint, dataset, tmp_path):
    before = Snapshot(checkpoint[0])
    sink = Asking("stop")
    result = train(checkpoint, dataset, tmp_path, sink, steps=50, scheduler="constant", on_cancel="stop the queue")
    summary = result.summary
    assert summary.outcome == "stopped" and 2 <= summary.steps < 10
    assert before.differences(Snapshot(checkpoint[0])) == []
    whole = train(checkpoint, dataset, tmp_path, name="whole", steps=summary.steps, scheduler="constant")
    assert all(torch.equal(whole.lora[name], tensor) for name, tensor in result.lora.items())
    assert (tmp_path / "runs" / "run" / "run.safetensors").is_file()


def test_stop_and_discard(checkpoint, dataset, tmp_path):
    from lora_workbench.training.host.progress import is_host_interrupt
    from lora_workbench.training.run.under_way import known

    before, sink = Snapshot(checkpoint[0]), Asking("discard")
    with pytest.raises(BaseException) as raised:
        train(checkpoint, dataset, tmp_path, sink, steps=50)
    assert is_host_interrupt(raised.value)
    assert not list((tmp_path / "runs").iterdir()) and known(sink.id) is None
    assert before.differences(Snapshot(checkpoint[0])) == []


def test_what_the_page_is_told_of_a_run_whose_folder_is_gone(checkpoint, dataset, tmp_path):
    from lora_workbench.training.run.under_way import known

    class Deletes(SilentSink):
        def record(self, run, line):
            if line["kind"] == "step" and line["step"] == 2:
                shutil.rmtree(tmp_path / "runs" / "run")

    result = train(checkpoint, dataset, tmp_path, Deletes(), steps=4)
    told = known(result.summary.id).told()
    assert told["state"] == "finished" and told["curve"]["step"] == [1, 2, 3, 4]
    assert told["lines"][-1]["kind"] == "end"
    assert (tmp_path / "runs" / "run" / "run.safetensors").is_file()


def test_an_ended_run_leaves_the_memory(checkpoint, dataset, tmp_path):
    """Its history is remembered for the panel; its weights and its optimizer's state are not."""
    from lora_workbench.training.adapters.network import Network
    from lora_workbench.training.run.under_way import known

    def networks() -> int:
        gc.collect()
        return sum(type(thing) is Network for thing in gc.get_objects())

    before = networks()
    ids = [train(checkpoint, dataset, tmp_path, steps=1).summary.id for _ in range(2)]
    assert all(known(run).told()["state"] == "finished" for run in ids)
    assert networks() == before


class CancelledAt(Asking):
    """Presses ComfyUI's cancel, or a button, while the samples of a step are painted."""

    def __init__(self, step: int, wish: str = "") -> None:
        super().__init__(wish, step)
        self.done, self.lines, self.painted = 0, [], 0

    def record(self, run: str, line: dict) -> None:
        self.id = run
        self.lines.append(line)
        if line["kind"] == "step":
            self.done = line["step"]

    def phase(self, text: str, done: int, total: int) -> None:
        from lora_workbench.training.run.under_way import known

        if text != "samples" or self.done < self.at - 1:
            return
        self.painted += done < total
        if self.asks:
            known(self.id).wish(self.asks)
        else:
            raise Cancelled


def samples(**options):
    from lora_workbench.training.watch import SampleOptions, Watch

    small = {"width": 64, "height": 64, "steps": 1, "every_epochs": 0, "at_start": False}
    return {"watch": Watch(samples=SampleOptions(prompts="one\ntwo\nthree", **{**small, **options}))}


def test_a_cancel_of_the_last_samples_leaves_a_finished_run(checkpoint, dataset, tmp_path):
    sink = CancelledAt(step=2)
    result = train(checkpoint, dataset, tmp_path, sink, more=samples(), steps=2)
    assert result.summary.outcome == "finished" and sink.taken
    assert [line["outcome"] for line in sink.lines if line["kind"] == "end"] == ["finished"]


def test_discard_does_not_wait_for_a_set_of_samples(checkpoint, dataset, tmp_path):
    from lora_workbench.training.host.progress import is_host_interrupt

    sink = CancelledAt(step=1, wish="discard")
    with pytest.raises(BaseException) as raised:
        train(checkpoint, dataset, tmp_path, sink, more=samples(at_start=True, every_steps=1), steps=5)
    assert is_host_interrupt(raised.value)
    assert sink.painted == 1 and not any(line["kind"] == "step" for line in sink.lines)


@pytest.mark.parametrize("place", ["before the loop", "in the first step"])
def test_what_breaks_a_run_at_its_start_is_no_discard(place, checkpoint, dataset, tmp_path, monkeypatch):
    from lora_workbench.training import train as module

    def breaks(*_: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(module, "watchers_of" if place == "before the loop" else "train", breaks)
    sink = CancelledAt(step=9)
    with pytest.raises(RuntimeError, match="no"):
        train(checkpoint, dataset, tmp_path, sink, steps=2)
    assert [line["outcome"] for line in sink.lines if line["kind"] == "end"] == ["failed"]
    assert not list((tmp_path / "runs").iterdir())


def test_a_checkpoint_that_cannot_be_saved_stays_in_view(checkpoint, dataset, tmp_path, monkeypatch):
    from lora_workbench.training.run import folder as module

    def full(*_: object, **__: object) -> None:
        raise UserError("run-step.safetensors could not be written: the disk is full.")

    real = module.write_lora

    def write(path, *arguments, **options):
        return (full if "-step" in path.name else real)(path, *arguments, **options)

    monkeypatch.setattr(module, "write_lora", write)
    sink = CancelledAt(step=9)
    result = train(checkpoint, dataset, tmp_path, sink, steps=4, save_every_steps=1)
    said = [line["text"] for line in sink.lines if line["kind"] == "hint" and "could not be written" in line["text"]]
    assert len(said) == 1 and result.summary.not_saved == tuple(said)
