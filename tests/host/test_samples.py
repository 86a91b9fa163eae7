"""Samples while training: what they show, and that they change nothing of the run."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support import small_models
from support.card import STREAMED, on_rung
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
