"""A real VAE that overflows in half precision on white: it is encoded in fp32, and the VAE is untouched."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support import small_models
from support.rig import Snapshot
from support.session import AGAIN

SCALE = 2.0**15  # twice that is more than half precision holds
WHITE, DARK = (np.full((64, 64, 3), grey, np.float32) for grey in (1.0, 0.2))


def vae_of(precision: torch.dtype, broken: bool = False) -> Any:
    """The small VAE with large values between its layers: 1 + colour, times SCALE."""
    import comfy.sd

    state = small_models.vae_weights(4, 0.18215)
    first, last = "taesd_encoder.0", "taesd_encoder.14"
    state[f"{last}.bias"] -= state[f"{last}.weight"][:, :, 1, 1].sum(1)
    state[f"{first}.weight"] *= SCALE
    state[f"{first}.bias"][:3] = SCALE
    state[f"{last}.weight"] /= SCALE
    if broken:
        state[f"{last}.bias"][0] = float("nan")
    with torch.inference_mode():
        return comfy.sd.VAE(sd={key: value.to(precision) for key, value in state.items()}, dtype=precision)


class Held:
    """Everything of a VAE that must stay as it was."""

    def __init__(self, vae: Any) -> None:
        tensors = dict(vae.first_stage_model.state_dict(keep_vars=True))
        self.values = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        self.objects = {name: (id(tensor), tensor.dtype, tensor.data_ptr()) for name, tensor in tensors.items()}
        self.attributes = {name: id(value) for name, value in vars(vae).items() if name != "size"}

    def is_same(self, later: Held) -> bool:
        same = all(torch.equal(self.values[name], later.values[name]) for name in self.values)
        return same and self.objects == later.objects and self.attributes == later.attributes


@torch.inference_mode()
def test_what_overflows_in_half_precision_is_encoded_in_fp32(comfy_host):
    from lora_workbench.training.host.vae import HostVAE

    vae = vae_of(torch.float16)
    before, host = Held(vae), HostVAE(vae)
    plain = HostVAE(vae_of(torch.float32))
    assert (host.dtype, host.name, plain.dtype) == ("fp16", "TAESD", "fp32")
    assert host.encode(DARK)["latent"].isfinite().all() and not host.encode(WHITE)["latent"].isfinite().all()
    for pixels in (WHITE, DARK):
        again = host.encode_in_fp32(pixels)
        assert again is not None and torch.allclose(again["latent"], plain.encode(pixels)["latent"], atol=0.01)
    assert plain.encode_in_fp32(WHITE) is None
    assert before.is_same(Held(vae))


@torch.inference_mode()
def test_the_vae_is_untouched_after_an_error_in_fp32(comfy_host, monkeypatch):
    import comfy.sd
    from lora_workbench.training.host.vae import HostVAE

    vae = vae_of(torch.float16)
    before, host = Held(vae), HostVAE(vae)

    def fails(*_):
        raise MemoryError("in fp32")

    monkeypatch.setattr(comfy.sd.VAE, "encode", fails)
    with pytest.raises(MemoryError, match="in fp32"):
        host.encode_in_fp32(WHITE)
    assert before.is_same(Held(vae))


@torch.inference_mode()
def test_a_vae_that_the_host_cannot_tell_by_its_weights_has_no_fp32(comfy_host):
    import comfy.sd
    from lora_workbench.training.host.vae import HostVAE

    class AnothersVAE(comfy.sd.VAE):
        pass

    vae = vae_of(torch.float16)
    vae.__class__ = AnothersVAE
    assert HostVAE(vae).encode_in_fp32(WHITE) is None
    vae = vae_of(torch.float16)
    vae.first_stage_model.taesd_encoder = torch.nn.Linear(2, 2).half()
    assert HostVAE(vae).encode_in_fp32(WHITE) is None


class Heard:
    def __init__(self) -> None:
        self.told: list[str] = []

    def tell(self, text: str) -> None:
        self.told.append(text)

    def phase(self, *_: Any) -> None: ...
    def record(self, *_: Any) -> None: ...
    def step(self, *_: Any) -> None: ...
    def hint(self, *_: Any) -> None: ...
    def take_cancel(self) -> None: ...

    @staticmethod
    def cancelled() -> bool:
        return False


@pytest.fixture(scope="module")
def checkpoint(comfy_host, tiny_checkpoint) -> tuple[Any, Any, Any]:
    import comfy.sd

    with torch.inference_mode():
        return comfy.sd.load_checkpoint_guess_config(str(tiny_checkpoint))[:3]


def dataset_of(folder: Path, captions: list[str], greys: list[int]) -> Any:
    from lora_workbench.training.data.buckets import BucketConfig, assign_buckets
    from lora_workbench.training.data.scan import scan_folder

    folder.mkdir()
    for number, (caption, grey) in enumerate(zip(captions, greys, strict=True)):
        Image.new("RGB", (128, 128), (grey,) * 3).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(caption)
    return assign_buckets(scan_folder(folder), BucketConfig(resolution=128, step=32))


def run(parts: Any, dataset: Any, folder: Path, sink: Any, **settings: Any) -> Any:
    from lora_workbench.training.config import TrainConfig
    from lora_workbench.training.train import train_lora

    config = TrainConfig(**{"name": "run", "epochs": 1, "rank": 4, "precision": "fp32", **AGAIN, **settings})
    with torch.inference_mode():
        return train_lora(*parts, dataset, config, root=folder / "runs", cache_root=folder / "cache", sink=sink)


def test_a_run_with_a_vae_that_fails_in_half_precision(checkpoint, tmp_path):
    """sd-scripts #653, kohya_ss #2674."""
    model, clip, _ = checkpoint
    dataset = dataset_of(tmp_path / "data", ["a hat"] * 3, [50, 255, 255])
    sink, vae = Heard(), vae_of(torch.float16)
    before = Held(vae)
    result = run((model, clip, vae), dataset, tmp_path, sink)
    assert result.summary.images == 3 and all(np.isfinite(result.summary.losses))
    assert before.is_same(Held(vae))
    (said,) = [text for text in sink.told if "is not finite" in text]
    assert "1.png" in said and "fp16" in said and "--fp32-vae" in said
    from lora_workbench.training.errors import UserError

    with pytest.raises(UserError, match=r"None of the 3 pictures .*2\.png.*TAESD.*Connect another VAE"):
        run((model, clip, vae_of(torch.float16, broken=True)), dataset, tmp_path / "broken", Heard())


def test_captions_of_two_lengths_are_one_forward_a_batch(checkpoint, tmp_path):
    """CLIP does not pad: a long caption takes two chunks. The announced steps are the steps that are run."""
    import comfy.model_management

    model, clip, vae = checkpoint
    captions = [" ".join(["hat"] * (100 if number % 2 else 5)) for number in range(6)]
    dataset = dataset_of(tmp_path / "data", captions, list(range(20, 80, 10)))
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([model])
    sink, before, seen = Heard(), Snapshot(model), []
    hook = model.model.diffusion_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((len(args[0]), kwargs["context"].shape[1])), with_kwargs=True
    )
    try:
        summary = run((model, clip, vae), dataset, tmp_path, sink, epochs=2, batch_size=2).summary
    finally:
        hook.remove()
    assert before.differences(Snapshot(model)) == []
    # Three of each length: a batch of two and one of one. The first forward is the rehearsal, of the longer captions.
    assert sink.told[0].startswith("Trains 8 steps") and summary.steps == 8
    assert seen[0] == (2, 154)
    assert sorted(seen[1:]) == sorted([(2, 77), (1, 77), (2, 154), (1, 154)] * 2)


def test_captions_of_two_lengths_on_a_model_without_padding(comfy_host, small_models_folder, tmp_path):
    """Qwen-Image with the host's own tokenizer."""
    from comfy.text_encoders.qwen_image import QwenImageTokenizer
    from lora_workbench.training.cache.captions import store_captions
    from lora_workbench.training.cache.latents import LatentStore, cache_folders
    from lora_workbench.training.config import TrainConfig
    from lora_workbench.training.data.dataset import Dataset, Picture, Placement
    from lora_workbench.training.host.model import HostModel
    from lora_workbench.training.host.text import HostText, count_tokens
    from lora_workbench.training.loop import train
    from lora_workbench.training.preflight import announce, prepared

    class Clip:
        """The real tokenizer; an encoder of its own would take 7 billion parameters."""

        def __init__(self, patcher: Any) -> None:
            self.patcher, self.cond_stage_model, self.layer_idx = patcher, torch.nn.Identity(), None
            self.tokenizer = QwenImageTokenizer()

        def tokenize(self, text: str) -> Any:
            return self.tokenizer.tokenize_with_weights(text)

        @staticmethod
        def encode_from_tokens_scheduled(tokens: Any) -> Any:
            return small_models.conditioning("qwen", length=sum(map(len, next(iter(tokens.values())))))

    patcher = small_models.build("qwen", small_models_folder)
    clip = Clip(patcher)
    model, text, length = HostModel(patcher), HostText(clip), partial(count_tokens, clip)
    place = Placement((128, 128), (128, 128), (0, 0))
    captions = ["a hat", "a hat that lies on a chair", "a sea", "a sea that lies near a hill", "a dog"]
    dataset = Dataset(
        tuple(Picture(Path(f"{n}.png"), (128, 128), c, placement=place) for n, c in enumerate(captions)), resolution=128
    )
    latent_cache, caption_cache = cache_folders(tmp_path)
    for n in range(len(captions)):
        latent_cache.put(f"latent{n}", {"latent": torch.randn(small_models.latent_shape("qwen", 16, 16))})
    sink, seen = Heard(), []
    plan, _ = announce(dataset, TrainConfig(epochs=2, rank=4, batch_size=2, precision="fp32"), sink, length)
    assert sink.told[0].startswith("Trains 6 steps")
    assert len({length(caption) for caption in captions}) == 2
    with torch.inference_mode():
        keys = {(n, False, 0): f"latent{n}" for n in range(len(captions))}
        latents = LatentStore(latent_cache, dataset, keys, 0)
        encoded = store_captions(plan.captions(), text, caption_cache, sink)
        with prepared(model, plan, latents, encoded) as ready:
            hook = model.model.diffusion_model.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
            try:
                train(ready.setup, ready.run, sink)
            finally:
                hook.remove()
    assert ready.run.step == plan.total == 6
    assert sorted(seen) == [1, 1, 2, 2, 2, 2]
