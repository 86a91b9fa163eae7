"""What goes wrong with samples, or in the last steps of a run, costs no training."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.card import lending
from support.samples import Sink, Untouched, options, train
from support.session import loaded, photos


@pytest.fixture(scope="module")
def checkpoint(comfy_host, tiny_checkpoint) -> tuple[Any, Any, Any]:
    return loaded(tiny_checkpoint)


@pytest.fixture(scope="module")
def dataset(comfy_host, tmp_path_factory):
    return photos(tmp_path_factory.mktemp("data") / "1_photo", most=4, resolution=64)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def plain(checkpoint, dataset, tmp_path_factory, cache):
    """What a run without samples makes."""
    return train(checkpoint, dataset, tmp_path_factory.mktemp("plain"), cache).lora


def assert_trained(result, plain):
    assert result.summary.outcome == "finished"
    assert all(torch.equal(tensor, result.lora[name]) for name, tensor in plain.items())


@pytest.mark.parametrize("kind", ["sampler", "decoder", "memory", "text", "LoRA"])
def test_what_throws_costs_the_sample(kind, checkpoint, dataset, tmp_path, cache, plain, monkeypatch):
    import comfy.model_management as management
    import comfy.sample
    from lora_workbench.training.adapters.network import Network

    is_full = kind in ("memory", "LoRA")
    error = management.OOM_EXCEPTION("no room") if is_full else RuntimeError("in its middle")
    real, calls = comfy.sample.sample, []

    def second_throws(*args, **keywords):
        calls.append(1)
        if len(calls) % 2 == 0:
            real(*args, **keywords)  # with the LoRA on the model
            raise error
        return real(*args, **keywords)

    def throws(*_, **__):
        raise error

    if kind == "decoder":
        monkeypatch.setattr(checkpoint[2], "decode", throws)
    elif kind == "text":
        monkeypatch.setattr(type(checkpoint[1]), "tokenize", _throwing_on(type(checkpoint[1]).tokenize, "a hat", error))
    elif kind == "LoRA":
        monkeypatch.setattr(Network, "saved_tensors", _throwing_once(Network.saved_tensors, error))
    else:
        monkeypatch.setattr(comfy.sample, "sample", second_throws)
    before, sink = Untouched(checkpoint), Sink()
    result = train(checkpoint, dataset, tmp_path, cache, options(), sink)
    assert_trained(result, plain)
    before.check()
    made = [[picture["file"][-6:] for picture in line["pictures"]] for line in sink.samples()]
    both = [["-1.png", "-2.png"]]
    assert made == {"sampler": [["-1.png"]] * 2, "memory": [["-1.png"]] * 2, "LoRA": both}.get(kind, [])
    (hint,) = [hint for hint in result.summary.hints if "sample" in hint.lower()]
    words = "(out of memory). Lower width and height" if is_full else "(RuntimeError: in its middle). Train"
    assert hint.startswith("A sample at step 0 failed ") and words in hint


def test_a_sample_that_failed_leaves_no_pages_on_layers(checkpoint, dataset, tmp_path, cache, plain, monkeypatch):
    """As a host with dynamic memory does if an error meets it in the middle of a layer."""
    import comfy.sample
    from lora_workbench.training import loop

    sockets = checkpoint[0].model.diffusion_model, checkpoint[1].cond_stage_model, checkpoint[2].first_stage_model
    layers = [next(part for part in socket.modules() if hasattr(part, "weight")) for socket in sockets]
    real, painted, trained = comfy.sample.sample, [], []

    def first_throws(*args, **keywords):
        painted.append([hasattr(layer, "_prefetch") for layer in layers])
        if len(painted) == 1:
            for layer in layers:
                layer._prefetch = {"signature": None}
            raise torch.OutOfMemoryError("Allocation on device")
        return real(*args, **keywords)

    step = loop.training_step
    seen = lambda *args: trained.append(hasattr(layers[0], "_prefetch")) or step(*args)  # noqa: E731
    monkeypatch.setattr(comfy.sample, "sample", first_throws)
    monkeypatch.setattr(loop, "training_step", seen)
    with lending() as taken_back:
        assert_trained(train(checkpoint, dataset, tmp_path, cache, options()), plain)
    assert set(taken_back) == set(layers) and not any(map(any, painted)) and not any(trained)


def test_the_end_of_a_run_is_on_disk_before_its_last_samples(checkpoint, dataset, tmp_path, cache, plain, monkeypatch):
    """A driver that resets in a last sample must not cost the night."""
    import comfy.sample
    from safetensors.torch import load_file

    file, found = tmp_path / "run" / "run.safetensors", []
    real = comfy.sample.sample
    monkeypatch.setattr(
        comfy.sample, "sample",
        lambda *args, **more: found.append(load_file(file) if file.exists() else None) or real(*args, **more),
    )  # fmt: skip
    train(checkpoint, dataset, tmp_path, cache, options(prompts="zorp"))
    first, last = found
    assert first is None and all(torch.equal(tensor, last[name]) for name, tensor in plain.items())


def test_a_device_that_is_gone_costs_no_more_than_the_lora(checkpoint, dataset, tmp_path, cache, monkeypatch):
    """After an error of CUDA nothing on the device can be read. The last file saved is named."""
    from lora_workbench.training.ready import Ready
    from lora_workbench.training.run.keeper import Keeper

    gone = []

    def breaks(*_):
        gone.append(1)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    real = Keeper.lora
    monkeypatch.setattr(Keeper, "lora", lambda self: breaks() if gone else real(self))
    monkeypatch.setattr(Ready, "_enters", lambda self: breaks() if self.run.step else True)
    sink = Sink()
    with pytest.raises(RuntimeError, match="illegal memory access"):
        train(checkpoint, dataset, tmp_path, cache, options(prompts="zorp", at_start=False), sink)
    folder = tmp_path / "run"
    told = json.loads((folder / "summary.json").read_text())
    assert (told["outcome"], told["steps"]) == ("failed", 3) and (folder / "run.safetensors").exists()
    assert len((folder / "losses.csv").read_text().splitlines()) == 4
    (said,) = told["not_saved"]
    assert said.startswith("The LoRA could not be read from the device after step 3. The last one saved is ")
    assert said.endswith("run.safetensors.") and said in sink.hints


@pytest.mark.parametrize("is_lost", [False, True])
def test_a_cancel_reads_all_losses_that_are_late(is_lost, checkpoint, dataset, tmp_path, cache, monkeypatch):
    """ComfyUI raises a cancel from its progress bar. On a GPU the last losses arrive only after that."""
    from lora_workbench.training import loop
    from lora_workbench.training.host.progress import host_interrupt
    from lora_workbench.training.late import Late
    from lora_workbench.training.run.state import Diverged

    class Host(Sink):
        def step(self, event):
            if self.is_cancelled:
                self.is_cancelled = False  # as the host does
                raise host_interrupt()

    def pressed_in_the_seventh(*args):
        done.append(1)  # first the trial step
        sink.is_cancelled = sink.is_cancelled or len(done) == 8
        found = real(*args)
        return replace(found, losses=found.losses * float("nan")) if is_lost and len(done) == 7 else found

    sink, done, real = Host(), [], loop.training_step
    monkeypatch.setattr(Late, "has_arrived", False)
    monkeypatch.setattr(loop, "training_step", pressed_in_the_seventh)
    run = lambda: train(checkpoint, dataset, tmp_path, cache, None, sink, steps=9, epochs=9)  # noqa: E731
    if is_lost:
        with pytest.raises(Diverged, match="^Training stopped at step 6: "):
            run()
        assert (tmp_path / "run" / "run-last-good.safetensors").exists()
        return
    summary = run().summary
    assert (summary.outcome, summary.steps) == ("cancelled", 7)
    steps = [line["step"] for line in sink.lines if line["kind"] == "step"]
    assert steps == list(range(1, summary.steps + 1)) and len(summary.losses) == summary.steps


def test_no_room_for_the_model_after_samples_costs_a_rung(checkpoint, dataset, tmp_path, cache, plain, monkeypatch):
    from lora_workbench.training.host.frozen import Differentiable

    error = torch.OutOfMemoryError("Allocation on device")
    monkeypatch.setattr(Differentiable, "_enter", _throwing_once(Differentiable._enter, error, at=2))
    before, sink = Untouched(checkpoint), Sink()
    result = train(checkpoint, dataset, tmp_path, cache, options(), sink)
    assert_trained(result, plain)
    assert result.summary.memory == "weights cast when used"
    assert [line["step"] for line in sink.samples()] == [0, 3]
    said = "Out of memory after the samples of step 0. Training goes on with weights cast when used."
    assert said in result.summary.hints and said in sink.hints
    before.check()


def test_a_step_that_is_not_finite_is_no_failed_sample(checkpoint, dataset, tmp_path, cache, monkeypatch):
    from lora_workbench.training import loop
    from lora_workbench.training.late import Late
    from lora_workbench.training.run.state import Diverged

    real, calls = loop.training_step, []

    def second_is_lost(*args):
        calls.append(1)  # first the trial step
        found = real(*args)
        return replace(found, losses=found.losses * float("nan")) if len(calls) == 3 else found

    monkeypatch.setattr(loop, "training_step", second_is_lost)
    monkeypatch.setattr(Late, "has_arrived", False)  # as on a GPU, where losses are read some steps later
    samples = options(prompts="zorp", at_start=False, every_epochs=0, every_steps=2)
    with pytest.raises(Diverged, match="^Training stopped at step 2: "):
        train(checkpoint, dataset, tmp_path, cache, samples)


def _throwing_once(real, error, at=1):
    calls = []

    def throwing(*args):
        calls.append(1)
        if len(calls) == at:
            raise error
        return real(*args)

    return throwing


def _throwing_on(real, text, error):
    def tokenize(self, given, *args, **keywords):
        if given == text:
            raise error
        return real(self, given, *args, **keywords)

    return tokenize


@pytest.mark.parametrize("kind", ["full", "no folder", "deleted"])
def test_files_that_cannot_be_written(kind, checkpoint, dataset, tmp_path, cache, plain, monkeypatch):
    real = os.replace

    def full(source, target):
        if str(target).endswith(".png"):
            raise OSError(28, "No space left on device")
        real(source, target)

    def spoil(line):
        if line["step"] == 1 and kind == "deleted":
            shutil.rmtree(tmp_path / "run")
        if line["step"] == 1 and kind == "no folder":
            (tmp_path / "run" / "samples").write_text("no folder")

    if kind == "full":
        monkeypatch.setattr(os, "replace", full)
    sink = Sink(spoil)
    result = train(checkpoint, dataset, tmp_path, cache, options(at_start=False, every_steps=1), sink)
    assert_trained(result, plain)
    assert (tmp_path / "run" / "run.safetensors").exists()
    said = [hint for hint in result.summary.hints if "could not be written" in hint]
    assert len(said) == (0 if kind == "deleted" else 1), "once for each cause"
    assert [line["step"] for line in sink.samples()] == {"full": [], "no folder": [], "deleted": [1, 2, 3]}[kind]


@pytest.mark.parametrize("ends", ["cancel", "cancel at start", "error", "stop"])
def test_a_run_that_ends_in_a_sample(ends, checkpoint, dataset, tmp_path, cache, monkeypatch):
    import comfy.model_management as management
    import comfy.sample

    real = comfy.sample.sample

    def sampled(*args, **keywords):
        if ends == "stop":
            sink.wish("stop")
        elif ends == "error":
            raise KeyboardInterrupt
        else:
            management.interrupt_current_processing(True)
        return real(*args, **keywords)

    monkeypatch.setattr(comfy.sample, "sample", sampled)
    before, sink = Untouched(checkpoint), Sink()
    samples = options(every_steps=2, at_start=ends == "cancel at start")
    run = lambda: train(checkpoint, dataset, tmp_path, cache, samples, sink)  # noqa: E731
    if ends in ("cancel", "stop"):
        summary = run().summary
        assert (summary.outcome, summary.steps) == ("cancelled" if ends == "cancel" else "stopped", 2)
        assert (tmp_path / "run" / "run.safetensors").exists()
        assert len(sink.samples()) == (1 if ends == "stop" else 0)
    else:
        with pytest.raises(BaseException) as raised:
            run()
        wanted = "KeyboardInterrupt" if ends == "error" else "InterruptProcessingException"
        assert raised.type.__name__ == wanted
        kept = tmp_path / "run" / "run-last-good.safetensors"
        assert kept.exists() if ends == "error" else not (tmp_path / "run").exists()
    before.check()
    management.interrupt_current_processing(False)
