"""What the panel's buttons ask of a run: save now, stop and keep, stop and discard. And what keeps a run going."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from lora_workbench.training.events import SilentSink
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
