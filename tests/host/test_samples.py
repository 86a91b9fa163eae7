"""Samples while training: they change nothing of the run, and what goes wrong with them costs no training."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support import small_models
from support.card import STREAMED, lending, on_rung
from support.rig import Snapshot
from support.session import AGAIN, loaded, photos

PROMPTS = "zorp, a photo --d 3\na hat --w 100 --h 64 --n grey"


@pytest.fixture(scope="module")
def checkpoint(comfy_host, tiny_checkpoint) -> tuple[Any, Any, Any]:
    return loaded(tiny_checkpoint)


@pytest.fixture(scope="module")
def dataset(comfy_host, tmp_path_factory):
    return photos(tmp_path_factory.mktemp("data") / "1_photo", most=4, resolution=64)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


def options(**settings: Any) -> Any:
    from lora_workbench.training.watch import SampleOptions

    return SampleOptions(**{"prompts": PROMPTS, "width": 64, "height": 64, "steps": 2, "cfg": 2.0, **settings})


class Sink:
    """Keeps what is said, and acts when a step is reported."""

    def __init__(self, on_step=lambda line: None):
        self.lines, self.hints, self.phases, self.on_step, self.is_cancelled = [], [], [], on_step, False

    def phase(self, text, done, total):
        self.phases.append((text, done, total))

    def record(self, run, line):
        self.run = run
        self.lines.append(line)
        if line["kind"] == "step":
            self.on_step(line)

    def step(self, event):
        pass

    def tell(self, text):
        pass

    def hint(self, text):
        self.hints.append(text)

    def cancelled(self):
        return self.is_cancelled

    def take_cancel(self):
        self.is_cancelled = False

    def wish(self, what):
        from lora_workbench.training.run.under_way import known

        known(self.run).wish(what)

    def samples(self):
        return [line for line in self.lines if line["kind"] == "sample"]


def train(parts, dataset, folder, cache, samples=None, sink=None, texts=(), **settings):
    from lora_workbench.training.config import TrainConfig
    from lora_workbench.training.train import train_lora
    from lora_workbench.training.watch import Watch

    config = TrainConfig(**{"name": "run", "steps": 3, "rank": 4, "learning_rate": 1e-2, **AGAIN, **settings})
    with torch.inference_mode():
        return train_lora(
            *parts, dataset, config, root=folder, cache_root=cache, sink=sink or Sink(),
            watch=Watch(samples=samples, picture_metadata=dict(texts)),
        )  # fmt: skip


class Untouched:
    """MODEL, CLIP and VAE before and after a run."""

    def __init__(self, parts):
        import comfy.model_management

        with torch.inference_mode():  # without what another test has applied
            comfy.model_management.load_models_gpu([parts[0], parts[1].patcher])
        self._parts = parts
        self._model, self._state = Snapshot(parts[0]), self._now()

    def _now(self):
        _, clip, vae = self._parts
        modules = clip.cond_stage_model, vae.first_stage_model
        return [tensor.detach().clone() for module in modules for tensor in module.state_dict().values()]

    def check(self, streams=False):
        found = self._model.differences(Snapshot(self._parts[0]))
        # A patched layer gets a new parameter from the host, which takes no gradient. Of what was streamed the host
        # loads the rest when there is room.
        own = ("objects", "grads", "modules") if streams else ("objects", "grads")
        assert [name for name in found if name not in own] == []
        assert all(parameter.grad is None for parameter in self._parts[0].model.parameters())
        # By bytes: the host leaves a tensor that SD1.5 lacks uninitialized, and it can hold NaN.
        as_bytes = [[tensor.reshape(-1).view(torch.uint8) for tensor in state] for state in (self._state, self._now())]
        assert all(torch.equal(one, other) for one, other in zip(*as_bytes, strict=True))


def painted_by_nodes(parts: Any, lora: Any, text: str, negative: str, samples: Any, size: Any, seed: int) -> Any:
    """What ApplyLoRA, CLIPTextEncode, EmptyLatentImage, KSampler, VAEDecode and SaveImage make, as bytes."""
    import numpy as np
    from lora_workbench.training.host.apply import apply_lora

    import nodes

    with torch.inference_mode():
        model, clip = apply_lora(parts[0], parts[1], lora, samples.strength, samples.strength)
        texts = [nodes.CLIPTextEncode().encode(clip, words)[0] for words in (text, negative)]
        (latent,) = nodes.EmptyLatentImage().generate(*size)
        kind = samples.sampler, samples.scheduler
        (latent,) = nodes.common_ksampler(model, seed, samples.steps, samples.cfg, *kind, *texts, latent)
        (images,) = nodes.VAEDecode().decode(parts[2], latent)
    return np.clip(255.0 * images[0].cpu().numpy(), 0, 255).astype(np.uint8).tobytes()


@pytest.mark.parametrize(
    ("settings", "rung"),
    [
        pytest.param({"precision": "fp32", "dropout": 0.2}, {}, marks=pytest.mark.long),
        pytest.param({"clip_l": True, "clip_l_rate": 1e-2, "precision": "bf16"}, {}, marks=pytest.mark.long),
        pytest.param({"ema_decay": 0.9}, {}, marks=pytest.mark.long),
        pytest.param({"optimizer": "ScheduleFreeAdamW"}, {}, marks=pytest.mark.long),
        ({"optimizer": "Lion", "learning_rate": 1e-3}, STREAMED),
    ],
    ids=str,
)
def test_training_is_the_same_with_samples(settings, rung, checkpoint, dataset, tmp_path, cache):
    if "optimizer" in settings:
        pytest.importorskip("pytorch_optimizer", reason="the package with ScheduleFreeAdamW is not installed")
    before, found, sinks = Untouched(checkpoint), [], [Sink(), Sink()]
    chosen = options(every_steps=2, every_epochs=0, sampler="euler_ancestral", strength=0.8)
    for sink, samples in zip(sinks, (None, chosen), strict=True):
        torch.manual_seed(5)
        with on_rung(**rung) if rung else nullcontext():
            result = train(checkpoint, dataset, tmp_path / "runs", cache, samples, sink, **settings)
        found.append((result, torch.get_rng_state()))
    (plain, state), (sampled, other_state) = found
    assert plain.summary.losses == sampled.summary.losses and torch.equal(state, other_state)
    assert plain.summary.memory == sampled.summary.memory
    assert plain.summary.memory.endswith("streamed from system memory") == bool(rung)
    assert all(torch.equal(tensor, sampled.lora[name]) for name, tensor in plain.lora.items())
    assert sinks[0].samples() == [] and [line["step"] for line in sinks[1].samples()] == [0, 2, 3]
    before.check(streams=bool(rung))
    names = [f"step{step:08d}-{number}.png" for step in (0, 2, 3) for number in (1, 2)]
    assert [Path(path).name for path in sampled.summary.samples] == names
    pictures = [Image.open(path) for path in sampled.summary.samples]
    assert [picture.size for picture in pictures[:2]] == [(64, 64), (96, 64)], "rounded down to the VAE's step"
    assert len({picture.tobytes() for picture in pictures[::2]}) == 3, "the LoRA is not seen"
    for picture, more in zip(pictures[-2:], [("zorp, a photo", "", 3), ("a hat", "grey", 0)], strict=True):
        text, negative, seed = more
        expected = painted_by_nodes(checkpoint, plain.lora, text, negative, chosen, picture.size, seed)
        assert picture.tobytes() == expected, "other pixels than the nodes paint"


@pytest.mark.parametrize("name", ["flux", "qwen"])
def test_latents_of_other_models(name, comfy_host, small_models_folder):
    """Flux takes guidance; Qwen-Image's latents have a dimension of time."""
    from lora_workbench.training.host.sampling import Painter
    from node_helpers import conditioning_set_values

    import nodes

    class Clip:
        def tokenize(self, text):
            return text

        def encode_from_tokens_scheduled(self, text, show_pbar):
            return small_models.conditioning(name, seed=len(text))

    class Vae:
        def spacial_compression_encode(self):
            return 8

        def decode(self, latent):
            return latent.movedim(1, -1)[..., :3]

    model = small_models.build(name, small_models_folder)
    samples = options(prompts="zorp --g 1.5 --w 70 --n no\nzorp --g 9 --w 64 --n no")
    painter = Painter(model, Clip(), Vae(), samples.lines())
    found = [painter.sample(prompt) for prompt in samples.lines()]
    with torch.inference_mode():
        positive, negative = (small_models.conditioning(name, seed=seed) for seed in (4, 2))
        empty = {"samples": torch.zeros(1, 16, 8, 8)}
        for latent, guidance in zip(found, (1.5, 9.0), strict=True):
            guided = conditioning_set_values(positive, {"guidance": guidance}) if name == "flux" else positive
            (made,) = nodes.common_ksampler(model, 0, 2, 2.0, "euler", "normal", guided, negative, empty)
            assert torch.equal(made["samples"], latent)
    assert found[0].shape == ((1, 16, 8, 8) if name == "flux" else (1, 16, 1, 8, 8))
    assert torch.equal(*found) == (name == "qwen")
    assert painter.decode(found[0]).size == (8, 8)


def test_what_is_said_of_a_sample(checkpoint, dataset, tmp_path, cache, monkeypatch):
    import comfy.sample
    from lora_workbench.training.host import memory

    real, peaks = comfy.sample.sample, [100]  # samples take more memory than training
    monkeypatch.setattr(memory, "begin_peak", lambda _: peaks.append(100) or 0)
    monkeypatch.setattr(memory, "peak", lambda _: peaks[-1])
    monkeypatch.setattr(comfy.sample, "sample", lambda *args, **more: peaks.append(900) or real(*args, **more))
    sink = Sink()
    texts = {"prompt": '{"1": 2}', "workflow": '{"nodes": []}'}
    result = train(checkpoint, dataset, tmp_path, cache, options(strength=0.5), sink, texts, steps=4)
    assert [(line["step"], line["epoch"]) for line in sink.samples()] == [(0, 0), (4, 1)], "each epoch, and first"
    assert [line["bytes"] for line in sink.lines if line["kind"] == "memory"] == [100] and 900 in peaks
    last = sink.samples()[-1]
    assert last["seconds"] > 0 and last["pictures"] == [
        {"file": "samples/step00000004-1.png", "number": 1, "prompt": "zorp, a photo", "seed": 3, "width": 64,
         "height": 64},
        {"file": "samples/step00000004-2.png", "number": 2, "prompt": "a hat", "seed": 0, "width": 96, "height": 64},
    ]
    assert Image.open(tmp_path / "run" / last["pictures"][1]["file"]).text == {
        **texts, "parameters": "a hat\nNegative prompt: grey\nSteps: 2, Sampler: euler, Schedule type: normal, CFG "
        "scale: 2.0, Seed: 0, Size: 96x64, Lora: run, Lora step: 4, Lora strength: 0.5",
    }  # fmt: skip
    told = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert told["samples"] == list(result.summary.samples)
    assert ("samples", 1, 2) in sink.phases


def test_sample_now(checkpoint, dataset, tmp_path, cache):
    def ask(line):
        if line["step"] == 1:
            sink.wish("sample")

    sink = Sink(ask)
    samples = options(at_start=False, every_epochs=0)
    train(checkpoint, dataset, tmp_path, cache, samples, sink, steps=8, epochs=9)
    first, last = sink.samples()
    assert 1 <= first["step"] < 8 == last["step"]
    sink = Sink(ask)
    summary = train(checkpoint, dataset, tmp_path, cache, None, sink, steps=8, epochs=9).summary
    said = "This run has no prompts, so it cannot make samples. Connect Sample Prompts to LoRA Trainer."
    assert said in summary.hints and summary.outcome == "finished" and sink.samples() == []


def test_no_metadata_where_it_is_switched_off(comfy_host, monkeypatch):
    from comfy.cli_args import args
    from lora_workbench.training.host.sampling import picture_metadata

    assert picture_metadata({"1": 2}, {"workflow": {}}) == {"prompt": '{"1": 2}', "workflow": "{}"}
    monkeypatch.setattr(args, "disable_metadata", True)
    assert picture_metadata({"1": 2}, {"workflow": {}}) is None


# -- faults ---------------------------------------------------------------------------------


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
    """The host raises its cancel wherever a step is told. As on a GPU, the last losses are read after it."""
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
