"""An estimate: its steps and files are those of the run, it writes nothing, and MODEL is as before."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import safetensors.torch
import torch
from PIL import Image
from support import small_models
from support.photos import write_photos
from support.rig import Snapshot
from support.session import AGAIN
from support.small_vae import vae_of

ROUNDING = 8  # bytes to which a file's header is padded


@pytest.fixture(scope="module")
def checkpoint(comfy_host, tiny_checkpoint) -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE of the small SD1.5 checkpoint, loaded as a server does."""
    import comfy.model_management
    import comfy.sd

    with torch.inference_mode():
        parts = comfy.sd.load_checkpoint_guess_config(str(tiny_checkpoint))[:3]
        comfy.model_management.load_models_gpu([parts[0]])  # the first load is the host's own change
    return parts


@pytest.fixture(scope="module")
def scanned(tmp_path_factory):
    from lora_workbench.training.data.scan import scan_folder

    folder = tmp_path_factory.mktemp("data") / "2_photo"
    photo = write_photos(folder, ["astronaut", "cat", "coffee", "launch_tower"], longest=128)[0]
    with Image.open(photo) as image:
        Image.linear_gradient("L").resize(image.size).save(photo.with_name(f"{photo.stem}_mask.png"))
    return scan_folder(folder.parent, trigger="zorp")


def bucketed(scanned, resolution=64, **more):
    from lora_workbench.training.data.buckets import BucketConfig, assign_buckets

    return assign_buckets(scanned, BucketConfig(resolution=resolution, step=32, **more))


@pytest.fixture(scope="module")
def dataset(scanned):
    """Pictures in several buckets, each also mirrored, one with a mask."""
    from lora_workbench.training.data.masks import MaskSettings, with_masks

    found, count = with_masks(bucketed(scanned, flip=True), MaskSettings().source, 0.2, [])
    assert count == 1
    return found


def estimated(parts, dataset, root, sink=None, measure=False, **settings):
    from lora_workbench.training.config import TrainConfig
    from lora_workbench.training.estimate import estimate
    from lora_workbench.training.events import SilentSink

    config = TrainConfig(**{"name": "run", "rank": 4, **AGAIN, **settings})
    with torch.inference_mode():
        return estimate(
            *parts, dataset, config, cache_root=root / "cache", sink=sink or SilentSink(), measure=measure
        )


def trained(parts, dataset, root, **settings):
    from lora_workbench.training.config import TrainConfig
    from lora_workbench.training.events import SilentSink
    from lora_workbench.training.train import train_lora

    config = TrainConfig(**{"name": "run", "rank": 4, **AGAIN, **settings})
    with torch.inference_mode():
        return train_lora(
            *parts, dataset, config, root=root / "runs", cache_root=root / "cache", sink=SilentSink()
        )


def files(root: Path) -> dict[str, int]:
    return {str(path.relative_to(root)): path.stat().st_size for path in root.rglob("*") if path.is_file()}


def without_metadata(path: Path) -> int:
    """The size of a LoRA file if it had no metadata."""
    return len(safetensors.torch.save(safetensors.torch.load_file(path)))


@pytest.mark.parametrize(
    "settings",
    [
        {"epochs": 2, "batch_size": 2, "gradient_accumulation": 2},
        {"steps": 3, "rank": 7, "alpha": 2.0},
        {"steps": 2, "clip_l": True},
    ],
    ids=["epochs", "steps", "text encoder"],
)
def test_steps_files_and_cache_are_those_of_the_run(settings, checkpoint, dataset, tmp_path, monkeypatch):
    from lora_workbench.training.files import save

    before = estimated(checkpoint, dataset, tmp_path, **settings)
    assert files(tmp_path) == {}
    result = trained(checkpoint, dataset, tmp_path, **settings)
    summary = result.summary
    assert before.steps == summary.steps == len(summary.losses)
    assert before.pictures_per_epoch == dataset.images_per_epoch == 2 * before.pictures
    if "epochs" in settings:
        assert before.steps == before.steps_per_epoch * before.epochs and before.epochs == summary.epochs
    assert (before.latents_to_encode, before.captions_to_encode) == (summary.encoded_latents, summary.encoded_captions)
    assert before.latents == before.latents_to_encode == 2 * before.pictures
    assert bool(before.captions_to_encode) != ("clip_l" in settings), "a trained encoder is asked in each step"
    run_file = tmp_path / "runs" / "run" / "run.safetensors"
    assert before.run_lora_bytes == without_metadata(run_file)
    monkeypatch.setattr(save, "loras_folder", lambda: tmp_path / "loras")
    saved = save.save_lora(result.lora, "", precision="fp16", layout="kohya", overwrite=False)
    assert before.lora_bytes == without_metadata(saved)
    # All that a file has besides is its metadata.
    header = 8 + int.from_bytes(saved.read_bytes()[:8], "little")
    empty = safetensors.torch.save(safetensors.torch.load_file(saved))
    more = header - 8 - int.from_bytes(empty[:8], "little")
    assert abs(saved.stat().st_size - before.lora_bytes - more) < ROUNDING
    assert before.cache_bytes == sum(files(tmp_path / "cache").values())
    after = estimated(checkpoint, dataset, tmp_path, **settings)
    assert (after.latents_to_encode, after.captions_to_encode) == (0, 0)
    assert after.cache_bytes == before.cache_bytes and after.steps == before.steps


def test_spreads_and_variants_are_counted(checkpoint, scanned, tmp_path):
    from lora_workbench.training.data.masks import MaskSettings, with_masks

    vae, parts = vae_of(), checkpoint[:2]
    varied = bucketed(scanned, flip=True, random_crop=True, color_aug=True, variants=3)
    varied, _ = with_masks(varied, MaskSettings().source, 0.2, [])
    before = estimated((*parts, vae), varied, tmp_path, steps=1)
    result = trained((*parts, vae), varied, tmp_path, steps=1)
    entries = [safetensors.torch.load_file(path) for path in (tmp_path / "cache" / "latents").rglob("*.safetensors")]
    assert sum(sorted(entry) == ["latent", "spread"] for entry in entries) == before.latents
    assert len(entries) == before.latents + 6, "the masks of 3 crops, mirrored or not"
    assert 2 * before.pictures < before.latents <= 6 * before.pictures
    assert before.latents_to_encode == before.latents == result.summary.encoded_latents
    assert before.cache_bytes == sum(files(tmp_path / "cache").values())
    again = estimated((*parts, vae), varied, tmp_path, steps=1, measure=True)
    assert again.latents_to_encode == 0 and again.cache_bytes == before.cache_bytes


def test_no_picture_and_at_most_one_caption_is_encoded(checkpoint, dataset, tmp_path, monkeypatch):
    from lora_workbench.training.host.text import HostText
    from lora_workbench.training.host.vae import HostVAE

    real, encoded = HostText.encode, []

    def encode(self, caption):
        encoded.append(caption)
        return real(self, caption)

    monkeypatch.setattr(HostText, "encode", encode)
    with mock.patch.object(HostVAE, "encode", side_effect=AssertionError):
        estimated(checkpoint, dataset, tmp_path, batch_size=4)
        estimated(checkpoint, dataset, tmp_path)
    assert len(encoded) == 2
    trained(checkpoint, dataset, tmp_path, steps=1)
    with mock.patch.object(HostText, "encode", side_effect=AssertionError):
        estimated(checkpoint, dataset, tmp_path)


def test_a_picture_that_is_gone_is_not_counted(checkpoint, tmp_path):
    from lora_workbench.training.data.scan import scan_folder

    folder = tmp_path / "data" / "1_photo"
    gone = write_photos(folder, ["cat", "coffee", "rocket"], longest=128)[1]
    data = bucketed(scan_folder(folder.parent, trigger="zorp"))
    whole = estimated(checkpoint, data, tmp_path, epochs=1)
    gone.unlink()
    found = estimated(checkpoint, data, tmp_path, epochs=1)
    assert found.steps == whole.steps - 1 == trained(checkpoint, data, tmp_path, epochs=1).summary.steps


@pytest.mark.parametrize("measure", [False, True], ids=["estimated", "measured"])
def test_nothing_is_written_and_the_model_is_as_before(measure, checkpoint, dataset, tmp_path):
    before = Snapshot(checkpoint[0])
    found = estimated(checkpoint, dataset, tmp_path, measure=measure, batch_size=2)
    assert before.differences(Snapshot(checkpoint[0])) == []
    assert files(tmp_path) == {}
    assert (found.measured is not None) is measure


def test_the_time_of_a_run_is_that_of_its_measured_steps(checkpoint, dataset, tmp_path):
    """How near it comes to a real run is measured in lab/bench."""
    found = estimated(checkpoint, dataset, tmp_path, measure=True, epochs=1)
    assert 0 < found.seconds == pytest.approx(found.steps * found.measured.seconds_per_step)
    assert "time of all steps" in dict(found.numbers()) and " in about " in found.summary()


def test_steps_of_several_sizes_are_weighed(scanned, checkpoint, tmp_path, monkeypatch):
    """Two resolutions: the mean lies between the time of a small and of a large step."""
    from lora_workbench.training import measure
    from lora_workbench.training.data.mixing import concat

    both = concat([bucketed(scanned, 64), bucketed(scanned, 96)])
    seconds = []

    def timed(ready, step, sink):
        seconds.append(measure._load(ready.setup.plan, step[1]) / 1000)
        return seconds[-1]

    monkeypatch.setattr(measure, "_timed", timed)
    found = estimated(checkpoint, both, tmp_path, measure=True)
    pixels = [picture.placement.bucket[0] * picture.placement.bucket[1] for picture in both.pictures]
    assert min(seconds) < found.measured.seconds_per_step < max(seconds)
    assert found.measured.seconds_per_step == pytest.approx(sum(pixels) / len(pixels) / 1000, rel=0.02)
    assert found.pictures == len(both.pictures) / 2  # the same files at another resolution


class CancelAt:
    """A sink on which cancel is pressed when a phase begins."""

    def __init__(self, phase: str) -> None:
        self.wanted, self.pressed, self.phases = phase, False, []

    def phase(self, text, done, total):
        self.phases.append(text)
        self.pressed = self.pressed or text == self.wanted

    def tell(self, text):
        pass

    hint = tell

    def cancelled(self):
        return self.pressed


@pytest.mark.parametrize("phase", ["estimating memory", "encoding pictures", "measuring steps"])
def test_cancel_stops_it_and_gives_the_model_back(phase, checkpoint, dataset, tmp_path):
    from lora_workbench.training.events import Cancelled

    before, sink = Snapshot(checkpoint[0]), CancelAt(phase)
    with pytest.raises(Cancelled):
        estimated(checkpoint, dataset, tmp_path, sink, measure=True)
    assert before.differences(Snapshot(checkpoint[0])) == [] and files(tmp_path) == {}
    assert sink.phases[-1] == phase


def test_bad_input_is_refused_as_by_the_trainer(scanned, checkpoint, dataset, tmp_path):
    from lora_workbench.training.errors import UserError

    model, clip, vae = checkpoint
    nothing = mock.Mock(wraps=model, model=mock.MagicMock(), model_options={})
    nothing.model.diffusion_model.named_modules.return_value = []
    for parts, data in (
        (checkpoint, scanned), ((model, None, vae), dataset), ((model, clip, None), dataset),
        ((nothing, clip, vae), dataset), (checkpoint, dataset.with_pictures(())),
    ):  # fmt: skip
        said = []
        for run in (estimated, trained):
            with pytest.raises(UserError) as error:
                run(parts, data, tmp_path)
            said.append(str(error.value))
        assert said[0] == said[1] and said[0].endswith(".")


def test_cards_take_what_they_have(checkpoint, dataset, tmp_path):
    found = estimated(checkpoint, dataset, tmp_path, batch_size=4)
    here, *cards = found.cards
    assert here.name == "this device (cpu)"
    assert [card.name for card in cards] == ["8 GB", "12 GB", "16 GB", "24 GB"]
    assert all(card.fits and card.peak <= card.budget for card in found.cards)
    assert all(card.rung == "plain" for card in cards), "the small model fits into any"
    assert not found.is_rough
    # The settings that set the memory reach the sum.
    larger = estimated(checkpoint, dataset, tmp_path, batch_size=4, rank=64)
    assert larger.cards[1].peak > found.cards[1].peak and larger.lora_bytes > 10 * found.lora_bytes


def test_a_small_card_takes_a_lower_rung_or_is_too_small(checkpoint, dataset, tmp_path, monkeypatch):
    from lora_workbench.training import estimate, fit

    monkeypatch.setattr(fit, "_WORKSPACE", 0)
    plain = estimated(checkpoint, dataset, tmp_path, batch_size=4).cards[1].peak
    sizes = {"8 GB": plain // 20, "12 GB": int(plain * 0.8), "16 GB": int(plain * 1.2), "24 GB": 2 * plain}
    monkeypatch.setattr(estimate, "preset_bytes", sizes.get)
    cards = {card.name: card for card in estimated(checkpoint, dataset, tmp_path, batch_size=4).cards}
    assert cards["24 GB"].how == cards["16 GB"].how == "plain"
    assert cards["12 GB"].fits and cards["12 GB"].how not in ("plain", cards["8 GB"].how)
    assert not cards["8 GB"].fits and cards["8 GB"].how.startswith("too small by ")


def test_a_setting_of_memory_holds_for_this_device(checkpoint, dataset, tmp_path):
    found = estimated(checkpoint, dataset, tmp_path, memory="8 GB")
    assert found.cards[0].name == "this device (cpu, memory 8 GB)"
    assert found.cards[0].budget <= 0.9 * 8 * 2**30


@pytest.mark.parametrize("channels", [4, 16])
def test_the_shape_of_a_latent_is_known_without_encoding(channels, comfy_host):
    import comfy.sd
    import numpy as np
    from lora_workbench.training.host.vae import HostVAE, latent_shape_of

    with torch.inference_mode():
        vae = comfy.sd.VAE(sd=small_models.vae_weights(channels, 1.0))
        latent = HostVAE(vae).encode(np.zeros((64, 96, 3), np.float32))["latent"]
    assert latent_shape_of(vae, (96, 64)) == tuple(latent.shape)


def test_the_report_has_every_number(checkpoint, dataset, tmp_path):
    found = estimated(checkpoint, dataset, tmp_path, epochs=3)
    text = found.text()
    assert f"\nsteps: {found.steps}\n" in text and "\n8 GB: " in text
    assert any("steps are few" in note for note in found.notes) and found.notes[-1] in text
    panel = found.panel()
    assert dict(panel["numbers"])["epochs"] == "3" and len(panel["cards"]) == 5 and panel["notes"] == found.notes
