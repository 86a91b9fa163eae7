"""A whole run in this process, CLIP and VAE included: what it refuses, and that it leaves nothing half-done."""

from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import small_models
from support.card import Card
from support.marks import long_but
from support.rig import Snapshot
from support.session import loaded, photos, train


@pytest.fixture(scope="module")
def checkpoint(comfy_host, tiny_checkpoint) -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE of the small SD1.5 checkpoint, loaded as a server does."""
    return loaded(tiny_checkpoint)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return photos(tmp_path_factory.mktemp("data") / "1_photo")


def trouble(parts, dataset, folder, **settings) -> str:
    from lora_workbench.training.errors import UserError

    with pytest.raises(UserError) as raised:
        train(parts, dataset, folder, **settings)
    assert not (folder / "runs").exists(), "a run that was refused left a folder"
    return str(raised.value)


def test_a_run_leaves_what_it_says(checkpoint, dataset, tmp_path):
    before = Snapshot(checkpoint[0])
    result = train(checkpoint, dataset, tmp_path, epochs=2, steps=0, batch_size=4, save_every_epochs=1)
    assert before.differences(Snapshot(checkpoint[0])) == []
    folder = tmp_path / "runs" / "run"
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json", "layers.json", "log.jsonl", "losses.csv", "report.html", "run-000001.safetensors", "run.json",
        "run.safetensors", "summary.json",
    ]  # fmt: skip
    told = json.loads((folder / "summary.json").read_text())
    assert told["epochs"] == 2 and told["images"] == 2 * len(dataset.pictures)
    assert len((folder / "losses.csv").read_text().splitlines()) == told["steps"] + 1
    assert json.loads((folder / "config.json").read_text())["rank"] == 4
    assert result.lora.metadata["ss_num_train_images"] == str(len(dataset.pictures))
    assert json.loads(result.lora.metadata["lora_workbench.epoch_losses"]) == pytest.approx(told["epoch_losses"])
    assert result.lora.metadata["ss_num_epochs"] == "2"
    assert result.lora.metadata["ss_max_train_steps"] == str(told["steps"])
    assert result.lora.metadata["ss_num_batches_per_epoch"] == str(told["steps"] // 2)
    assert float(result.lora.metadata["lora_workbench.final_loss"]) == pytest.approx(told["losses"][-1])


def test_a_name_that_is_taken_gets_a_number(checkpoint, dataset, tmp_path):
    names = [train(checkpoint, dataset, tmp_path, steps=1).summary.name for _ in range(3)]
    assert names == ["run", "run-2", "run-3"]


def test_what_came_out_does_not_change_when_training_goes_on(checkpoint, dataset, tmp_path):
    first = train(checkpoint, dataset, tmp_path)
    kept = {name: tensor.clone() for name, tensor in first.lora.items()}
    train(checkpoint, dataset, tmp_path, seed=3)
    assert all(torch.equal(first.lora[name], kept[name]) for name in kept)


def test_a_clip_of_another_family(checkpoint, dataset, small_models_folder, tmp_path):
    model, clip, vae = checkpoint
    sdxl = small_models.build("sdxl", small_models_folder)
    said = trouble((sdxl, clip, vae), dataset, tmp_path)
    assert "CLIP does not go with this MODEL" in said and "768 wide" in said
    sd2 = small_models.build("sd2_v", small_models_folder)
    assert "CLIP does not go with this MODEL" in trouble((sd2, clip, vae), dataset, tmp_path)


def test_a_vae_of_another_family(checkpoint, dataset, small_models_folder, tmp_path):
    _, clip, vae = checkpoint
    sd3 = small_models.build("sd3", small_models_folder)
    assert "latents of 4 channels and the MODEL takes 16" in trouble((sd3, clip, vae), dataset, tmp_path)


def test_a_vae_without_the_models_dimension_of_time(checkpoint, dataset, small_models_folder, tmp_path):
    import comfy.sd

    vae = comfy.sd.VAE(sd=small_models.vae_weights(16, scale=1.0))
    qwen = small_models.build("qwen", small_models_folder)
    assert "2 dimensions and the MODEL takes 3" in trouble((qwen, checkpoint[1], vae), dataset, tmp_path)


def test_the_metadata_of_a_run_by_steps(checkpoint, dataset, tmp_path):
    """Epochs are those that the steps made, warm-up is what there was of it."""
    settings = {"steps": 3, "epochs": 10, "warmup_steps": 50}
    metadata = train(checkpoint, dataset, tmp_path, batch_size=4, **settings).lora.metadata
    assert (metadata["ss_num_epochs"], metadata["ss_max_train_steps"]) == ("1", "3")
    assert metadata["ss_lr_warmup_steps"] == "2"


def test_a_model_without_a_trainable_layer(checkpoint, dataset, tmp_path):
    import copy

    model, clip, vae = checkpoint
    bare = model.clone()
    bare.model = copy.copy(model.model)
    bare.model._modules = dict(model.model._modules, diffusion_model=torch.nn.Sequential(torch.nn.ReLU()))
    assert "no layer a LoRA can be trained on" in trouble((bare, clip, vae), dataset, tmp_path)


def test_empty_sockets_and_a_dataset_without_buckets(checkpoint, dataset, tmp_path):
    model, clip, vae = checkpoint
    assert "The CLIP input is empty" in trouble((model, None, vae), dataset, tmp_path)
    assert "The VAE input is empty" in trouble((model, clip, None), dataset, tmp_path)
    bare = dataset.with_pictures(replace(p, placement=None) for p in dataset.pictures)
    assert "Put Bucket Images between" in trouble(checkpoint, bare, tmp_path)
    assert "dataset has no pictures" in trouble(checkpoint, dataset.with_pictures(()), tmp_path)


def test_a_bucket_that_the_vae_cannot_take(checkpoint, dataset, tmp_path):
    odd = dataset.with_pictures(replace(p, placement=replace(p.placement, bucket=(100, 132))) for p in dataset.pictures)
    assert "not a multiple of 8 pixels" in trouble(checkpoint, odd, tmp_path)


def test_a_full_disk_costs_a_file_and_not_the_training(checkpoint, dataset, tmp_path, monkeypatch):
    def full(plain):
        def write(source, target):
            if str(target).endswith(".safetensors"):
                raise OSError(28, "No space left on device")
            plain(source, target)

        return write

    whole = train(checkpoint, dataset, tmp_path / "before")
    train(checkpoint, dataset, tmp_path, name="fills the caches", steps=1)
    for name in ("replace", "link"):
        monkeypatch.setattr(os, name, full(getattr(os, name)))
    result = train(checkpoint, dataset, tmp_path, save_every_steps=1)
    assert all(torch.equal(result.lora[name], tensor) for name, tensor in whole.lora.items())
    assert "run.safetensors could not be written" in " ".join(result.summary.not_saved)
    assert "could not be written" in result.summary.describe() and result.summary.checkpoints == ()
    texts = (".json", ".jsonl", ".csv", ".html")
    assert not [path for path in (tmp_path / "runs" / "run").iterdir() if path.suffix not in texts]


def test_a_run_that_breaks_off_says_where_its_lora_is(checkpoint, dataset, tmp_path, monkeypatch):
    from lora_workbench.training import loop

    real = loop.optimizer_step

    def breaks(at):
        def optimizer_step(setup, run, *more):
            if run.step == at:
                raise MemoryError("in the middle")
            real(setup, run, *more)

        return optimizer_step

    monkeypatch.setattr(loop, "optimizer_step", breaks(2))
    before = Snapshot(checkpoint[0])
    with pytest.raises(MemoryError, match="in the middle"):
        train(checkpoint, dataset, tmp_path, steps=5)
    assert before.differences(Snapshot(checkpoint[0])) == []
    folder = tmp_path / "runs" / "run"
    told = json.loads((folder / "summary.json").read_text())
    assert (told["outcome"], told["steps"]) == ("failed", 2)
    assert (folder / "run-last-good.safetensors").exists()
    monkeypatch.setattr(loop, "optimizer_step", breaks(0))
    with pytest.raises(MemoryError):
        train(checkpoint, dataset, tmp_path, steps=5)
    assert not (tmp_path / "runs" / "run-2").exists(), "nothing was trained, so nothing should lie there"


def test_a_patch_of_another_node_sees_the_schedule(checkpoint, dataset, tmp_path):
    """Deep Shrink and its kin read the noise level; an error of theirs is not blamed on the CLIP."""
    model, clip, vae = checkpoint
    seen = []

    def patch(h, options):
        seen.append((float(options["sigmas"][0]), options["cond_or_uncond"], len(options["sample_sigmas"])))
        return h

    def broken(h, options):
        raise KeyError("what only this patch knows")

    patched = model.clone()
    patched.set_model_input_block_patch(patch)
    train((patched, clip, vae), dataset, tmp_path)
    assert seen and all(sigma > 0 for sigma, _, _ in seen)
    patched = model.clone()
    patched.set_model_input_block_patch(broken)
    with pytest.raises(KeyError, match="what only this patch knows"):
        train((patched, clip, vae), dataset, tmp_path)


def test_patches_on_the_model_stay(checkpoint, dataset, tmp_path):
    """A LoRA the user has on the MODEL is trained upon and is still there afterwards."""
    from lora_workbench.training.host.apply import apply_lora

    model, clip, vae = checkpoint
    first = train(checkpoint, dataset, tmp_path).lora
    patched, _ = apply_lora(model, clip, first, 1.0, 1.0)
    losses = [
        train((m, clip, vae), dataset, tmp_path, precision="fp32").summary.losses for m in (model, patched)
    ]
    assert losses[0] != losses[1], "training did not see the patches"
    assert len(patched.patches) == len(first.layers)
    plain = train(checkpoint, dataset, tmp_path, precision="fp32").summary.losses
    assert plain == losses[0]


class Heard:
    """A sink that records every sentence."""

    def __init__(self):
        self.told, self.hints = [], []

    def phase(self, text, done, total):
        pass

    def record(self, *_):
        pass

    def step(self, event):
        pass

    def tell(self, text):
        self.told.append(text)

    def hint(self, text):
        self.hints.append(text)

    def cancelled(self):
        return False


def captioned(dataset, *captions, trigger=""):
    """The dataset with these captions in turn."""
    pictures = (replace(p, caption=captions[n % len(captions)]) for n, p in enumerate(dataset.pictures))
    return replace(dataset, trigger=trigger, pictures=tuple(pictures))


def test_pictures_without_a_caption_are_refused(checkpoint, dataset, tmp_path):
    from lora_workbench.training.data.dataset import CaptionPolicy
    from lora_workbench.training.data.mixing import with_regularization

    empty = captioned(dataset, "", " , ")
    said = trouble(checkpoint, empty, tmp_path)
    assert "Write a trigger in Load Dataset or caption the pictures" in said and "train_without_captions" in said
    # Captions of regularization pictures are not learned.
    assert "No picture to learn has a caption" in trouble(checkpoint, with_regularization(empty, dataset), tmp_path)
    lost = captioned(dataset, "", trigger="zorp")
    assert "Put the trigger 'zorp' into the captions" in trouble(checkpoint, lost, tmp_path)
    dropped = replace(captioned(dataset, "a hat, sea"), policy=CaptionPolicy(tag_dropout=1.0, keep_tokens=0))
    assert "Lower tag_dropout in Live Captions" in trouble(checkpoint, dropped, tmp_path)
    for meant, settings in ((empty, {"train_without_captions": True}), (captioned(dataset, "zorp"), {}),
                            (replace(captioned(dataset, "a hat"), policy=CaptionPolicy(caption_dropout=1.0)), {}),
                            (with_regularization(captioned(dataset, "a hat"), empty), {})):  # fmt: skip
        sink = Heard()
        train(checkpoint, meant, tmp_path, sink, steps=1, warn_about_steps=False, **settings)
        assert sink.hints == []


def test_some_pictures_without_a_caption_are_named(checkpoint, dataset, tmp_path):
    names = [picture.path.name for picture in dataset.pictures]
    sink = Heard()
    summary = train(checkpoint, captioned(dataset, "", "zorp"), tmp_path, sink, warn_about_steps=False).summary
    (hint,) = summary.hints
    assert hint.startswith(f"{len(names[::2])} of {len(names)} pictures have no caption ({', '.join(names[:5:2])} and ")
    assert sink.hints == [hint]


def test_what_was_said_before_the_run_is_in_its_summary(checkpoint, dataset, tmp_path):
    """kohya_ss #735."""
    sink = Heard()
    summary = train(checkpoint, dataset, tmp_path, sink, seed=7, warmup_steps=50, save_every_epochs=3).summary
    assert sink.told[0] == f"Trains 2 steps: 1 epoch of {len(dataset.pictures)} pictures, 1 per step."
    assert [hint.split(",")[0] for hint in sink.hints] == [
        "2 steps are few", "warmup steps is 50", "save every epochs is 3",
    ]  # fmt: skip
    assert list(summary.hints) == sink.hints
    told = json.loads((tmp_path / "runs" / "run" / "summary.json").read_text())
    assert (told["hints"], told["seed"]) == (sink.hints, 7)
    assert all(hint in sink.told[-1] for hint in sink.hints) and "runs/run, seed 7" in sink.told[-1]


@pytest.mark.parametrize("precision", long_but({"fp32", "bf16"}, ["fp32", "bf16", "fp16"]))
def test_a_run_says_what_it_computes_in(precision, checkpoint, dataset, tmp_path):
    sink = Heard()
    result = train(checkpoint, dataset, tmp_path, sink, precision=precision)
    assert f"Computes in {precision}." in sink.told
    assert result.lora.metadata["ss_mixed_precision"] == ("no" if precision == "fp32" else precision)


def test_a_loss_that_rose_is_said_at_the_end(checkpoint, dataset, tmp_path, monkeypatch):
    """The small model does not break at any rate, so its answers go wrong from the middle on."""
    from lora_workbench.training.host.model import HostModel

    real, asked = HostModel.denoised, []

    def wrong(*args):
        asked.append(args)
        return real(*args) * (1 if len(asked) < 12 else 4)

    monkeypatch.setattr(HostModel, "denoised", wrong)
    sink = Heard()
    summary = train(checkpoint, dataset, tmp_path, sink, steps=24, warn_about_steps=False).summary
    assert [hint.startswith("The loss rose from ") for hint in sink.hints] == [True], summary.losses
    assert list(summary.hints) == sink.hints and sink.hints[0] in sink.told[-1]


def test_the_metadata_names_run_seed_and_base_model(checkpoint, dataset, tiny_checkpoint, tmp_path):
    from lora_workbench.training.config import TrainConfig
    from lora_workbench.training.events import SilentSink
    from lora_workbench.training.host.origin import short_hash
    from lora_workbench.training.train import train_lora

    with torch.inference_mode():
        lora = train_lora(
            *checkpoint, dataset, TrainConfig(name="run", steps=1, rank=4, seed=7), root=tmp_path / "runs",
            cache_root=tmp_path / "cache", sink=SilentSink(), model_file=tiny_checkpoint,
        ).lora  # fmt: skip
    assert (lora.metadata["ss_sd_model_name"], lora.metadata["ss_sd_model_hash"]) == (
        tiny_checkpoint.name, short_hash(tiny_checkpoint),
    )  # fmt: skip
    assert lora.origin == "run run, seed 7"


def test_one_folder_at_two_resolutions(checkpoint, dataset, tmp_path):
    """sd-scripts #557: both are trained and in the metadata. The first still uses its cached latents."""
    from lora_workbench.training.data.buckets import BucketConfig, assign_buckets
    from lora_workbench.training.data.mixing import concat

    train(checkpoint, dataset, tmp_path, steps=1)
    small = assign_buckets(dataset, BucketConfig(resolution=64, step=32))
    result = train(checkpoint, concat([dataset, small]), tmp_path, epochs=1, steps=0, batch_size=4)
    assert result.summary.encoded_latents == len(dataset.pictures)
    assert result.summary.images == 2 * len(dataset.pictures)
    assert result.lora.metadata["ss_resolution"] == "(128, 128), (64, 64)"
    assert [part["resolution"] for part in json.loads(result.lora.metadata["ss_datasets"])] == [[128, 128], [64, 64]]


def test_a_run_goes_on_after_out_of_memory_and_says_so(checkpoint, dataset, tmp_path):
    before = Snapshot(checkpoint[0])
    with Card(fails=1, after=3).inserted():
        summary = train(checkpoint, dataset, tmp_path, steps=4).summary
    assert summary.outcome == "finished" and summary.steps == 4
    assert "Out of memory at step 3. It goes on with weights cast when used." in summary.hints
    assert before.differences(Snapshot(checkpoint[0])) == []


@pytest.mark.long
def test_the_lora_is_kept_when_no_way_is_left(checkpoint, dataset, tmp_path):
    from lora_workbench.training.errors import UserError

    with Card(fails=99, after=3).inserted(), pytest.raises(UserError) as raised:
        train(checkpoint, dataset, tmp_path, steps=4)
    kept = tmp_path / "runs" / "run" / "run-last-good.safetensors"
    assert str(raised.value).endswith(f"The LoRA as it was after step 2 is in {kept}.") and kept.exists()


class Meddles(Heard):
    """Does something once, after the first step."""

    def __init__(self, act):
        super().__init__()
        self.act, self.run = act, ""

    def record(self, run, line):
        self.run = run
        if line["kind"] == "step" and self.act:
            self.act, act = None, self.act
            act()


def test_a_run_whose_folder_is_deleted_goes_on(checkpoint, dataset, tmp_path):
    from lora_workbench.training.run.under_way import known

    whole = train(checkpoint, dataset, tmp_path / "before", steps=4)
    sink = Meddles(lambda: shutil.rmtree(tmp_path / "runs" / "run"))
    result = train(checkpoint, dataset, tmp_path, sink, steps=4, save_every_steps=3)
    assert all(torch.equal(result.lora[name], tensor) for name, tensor in whole.lora.items())
    folder = tmp_path / "runs" / "run"
    assert {"run.safetensors", "run-step00000003.safetensors", "summary.json"} <= {p.name for p in folder.iterdir()}
    told = known(sink.run).told()
    assert told["curve"]["step"] == [1, 2, 3, 4] and told["lines"][-1]["outcome"] == "finished"


def test_a_folder_that_becomes_read_only_costs_its_files(checkpoint, dataset, tmp_path, monkeypatch):
    """Where the tests run as root, permissions do not bind them, so the calls are refused."""
    from lora_workbench.training.run.under_way import known

    folder, opened = tmp_path / "runs" / "run", Path.open

    def refused(path, mode="r", *more, **others):
        if mode[0] in "wax" and folder in path.parents:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, mode, *more, **others)

    whole = train(checkpoint, dataset, tmp_path / "before", steps=4)
    sink = Meddles(lambda: monkeypatch.setattr(Path, "open", refused))
    result = train(checkpoint, dataset, tmp_path, sink, steps=4, save_every_steps=3)
    monkeypatch.undo()
    assert all(torch.equal(result.lora[name], tensor) for name, tensor in whole.lora.items())
    assert not list(folder.glob("*.safetensors")) and result.summary.outcome == "finished"
    assert result.summary.not_saved[0].startswith(f"ComfyUI has no permission to write to {folder}")
    assert "no permission" in sink.told[-1]
    told = known(sink.run).told()
    assert told["curve"]["step"] == [1, 2, 3, 4] and told["lines"][-1]["outcome"] == "finished"
    again = train(checkpoint, dataset, tmp_path, steps=4, if_run_before="use its LoRA", save_every_steps=3)
    assert again.summary.id != result.summary.id, "a run without its file was used"


def test_a_run_is_listed_before_its_first_line_is_told(checkpoint, dataset, tmp_path):
    """A page asks for the run as soon as it hears of it, and would take a run that is not listed for a broken one."""
    from lora_workbench.training.events import SilentSink
    from lora_workbench.training.run.under_way import known

    class Page(SilentSink):
        heard: list[tuple[str, str]] = []

        def record(self, run, line):
            self.heard.append((line["kind"], known(run).told()["state"] if known(run) else "unknown"))

    train(checkpoint, dataset, tmp_path, Page())
    assert Page.heard[0] == ("begin", "running") and Page.heard[-1] == ("end", "finished")


def test_the_losses_are_written_in_mid_run_but_not_after_each_short_epoch(checkpoint, tmp_path, monkeypatch):
    from lora_workbench.training.run import keeper
    from lora_workbench.training.run.folder import RunFolder

    real, written = RunFolder.write_losses, []
    monkeypatch.setattr(RunFolder, "write_losses", lambda *args: written.append(len(args[1])) or real(*args))
    settings = {"steps": 0, "epochs": 3, "batch_size": 4}
    dataset = photos(tmp_path / "1_photo", most=4, resolution=64)
    train(checkpoint, dataset, tmp_path, **settings)
    assert len(written) == 1
    monkeypatch.setattr(keeper, "_LOSSES_EVERY", 0)
    train(checkpoint, dataset, tmp_path, **settings)
    assert len(written) == 1 + 3 + 1 and written[1] < written[2] < written[3] == written[4] == written[0]
