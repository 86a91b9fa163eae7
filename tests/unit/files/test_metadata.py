"""What a LoRA file says about itself, held against how its readers take it."""

from __future__ import annotations

import ast
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lora_workbench.training.config import TrainConfig, kohya_settings
from lora_workbench.training.data.dataset import CaptionPolicy, Dataset, Picture, Placement
from lora_workbench.training.files.architectures import architecture_facts
from lora_workbench.training.files.metadata import ModelFacts, Session, build_metadata
from lora_workbench.training.lora import RunSummary


def picture(name: str, caption: str, concept: str, repeats: int, bucket: tuple[int, int], **more: Any) -> Picture:
    placement = Placement(bucket, bucket, (0, 0))
    return Picture(Path(name), (100, 100), caption, repeats, concept, placement=placement, **more)


def make_dataset(**more: Any) -> Dataset:
    pictures = (
        picture("a.png", "Zxc, red hat , ,", "10_girl", 10, (512, 512), class_word="girl", flip=True),
        picture("b.png", "zxc, dog", "10_girl", 10, (640, 384), class_word="girl"),
        picture("c.png", "zxc", "style", 3, (512, 512)),
    )
    return Dataset(pictures, name="pics", trigger="zxc", bucket_step=64, resolution=512, **more)


SESSION = Session(id=42, started_at=1700000000.5, finished_at=1700000100.25, batches_per_epoch=12)
SUMMARY = RunSummary("my_lora", "runs/my_lora", losses=(0.5, 0.25), epoch_losses=(0.375,), steps=2, epochs=1)
SETTINGS: dict[str, Any] = {
    "name": "my_lora", "rank": 8, "alpha": 4.0, "batch_size": 2, "gradient_accumulation": 3, "timesteps": "uniform",
    "precision": "fp32",
}  # fmt: skip


def build(dataset: Dataset | None = None, model: ModelFacts = ModelFacts("SD15"), **settings: Any) -> dict[str, str]:  # noqa: B008
    known = kohya_settings(TrainConfig(**{**SETTINGS, **settings}), {})
    return build_metadata(known, SUMMARY, dataset or make_dataset(), model, SESSION)


def test_every_value_is_text() -> None:
    metadata = build()
    assert all(isinstance(key, str) and isinstance(value, str) for key, value in metadata.items())
    assert metadata["ss_text_encoder_lr"] == "None"
    assert metadata["ss_gradient_checkpointing"] == "False" and metadata["ss_flip_aug"] == "True"
    assert metadata["ss_network_dim"] == "8" and metadata["ss_network_alpha"] == "4.0"
    assert metadata["ss_optimizer"] == "torch.optim.AdamW(weight_decay=0.01)"
    assert float(metadata["ss_training_started_at"]) == 1700000000.5


def test_lora_plus_is_told_as_kohya_tells_it() -> None:
    assert json.loads(build()["ss_network_args"]) == {}
    assert json.loads(build(lora_plus=4.0)["ss_network_args"]) == {"loraplus_lr_ratio": "4"}


def test_how_pictures_and_captions_vary() -> None:
    keys = ("ss_random_crop", "ss_color_aug", "ss_caption_dropout_every_n_epochs", "lora_workbench.latents")
    plain = build()
    assert [plain[key] for key in keys] == ["False", "False", "0", "new each step"]
    whole = make_dataset(policy=CaptionPolicy(drop_every_epochs=3))
    varied = [replace(p, random_crop=n == 0, color_aug=n == 2) for n, p in enumerate(whole.pictures)]
    metadata = build(whole.with_pictures(tuple(varied)), latents="drawn once")
    assert [metadata[key] for key in keys] == ["True", "True", "3", "drawn once"]
    first, second = json.loads(metadata["ss_datasets"])[0]["subsets"]
    assert (first["random_crop"], first["color_aug"]) == (True, False)
    assert (second["random_crop"], second["color_aug"]) == (False, True)


def test_tags_are_counted_as_kohya_does() -> None:
    tags = json.loads(build()["ss_tag_frequency"])
    assert tags == {"10_girl": {"zxc": 2, "red hat": 1, "dog": 1}, "3_style": {"zxc": 1}}


def test_json_is_not_counted_as_tags() -> None:
    whole = make_dataset()
    json_captions = [replace(picture, caption='{"tags": "a, b"}') for picture in whole.pictures]
    assert json.loads(build(whole.with_pictures(tuple(json_captions)))["ss_tag_frequency"]) == {}


def test_folders_and_datasets() -> None:
    metadata = build()
    assert json.loads(metadata["ss_dataset_dirs"]) == {
        "10_girl": {"n_repeats": 10, "img_count": 2},
        "3_style": {"n_repeats": 3, "img_count": 1},
    }
    (dataset,) = json.loads(metadata["ss_datasets"])
    assert dataset["resolution"] == [512, 512] and dataset["tag_frequency"]["3_style"] == {"zxc": 1}
    first, second = dataset["subsets"]
    assert (first["class_tokens"], first["num_repeats"], first["img_count"]) == ("girl", 10, 2)
    assert second["class_tokens"] is None
    assert metadata["ss_num_train_images"] == "23"
    assert metadata["ss_total_batch_size"] == "6" and metadata["ss_batch_size_per_device"] == "2"


def test_regularisation_pictures_are_told_apart() -> None:
    dataset = make_dataset()
    prior = picture("d.png", "a girl", "1_girls", 2.5, (512, 512), is_regularization=True, weight=0.5)
    metadata = build(dataset.with_pictures((*dataset.pictures, prior, prior)))
    assert (metadata["ss_num_train_images"], metadata["ss_num_reg_images"]) == ("23", "5")
    assert json.loads(metadata["ss_reg_dataset_dirs"]) == {"1_girls": {"n_repeats": 2.5, "img_count": 2}}
    assert metadata["ss_prior_loss_weight"] == "0.5"
    assert list(json.loads(metadata["ss_tag_frequency"])) == ["10_girl", "3_style"]
    (told,) = json.loads(metadata["ss_datasets"])
    assert [subset["is_reg"] for subset in told["subsets"]] == [False, False, True]


def test_pictures_without_a_folder_go_by_the_datasets_name() -> None:
    dataset = Dataset((picture("a.png", "x", "", 1, (512, 512)),), name="pics", resolution=512)
    assert json.loads(build(dataset)["ss_dataset_dirs"]) == {
        "1_pics": {"n_repeats": 1, "img_count": 1}
    }


def test_buckets() -> None:
    metadata = build()
    info = json.loads(metadata["ss_bucket_info"])
    assert info["buckets"] == {
        "0": {"resolution": [512, 512], "count": 13},
        "1": {"resolution": [640, 384], "count": 10},
    }
    assert info["mean_img_ar_error"] == pytest.approx((640 / 384 - 1) / 3)
    assert ast.literal_eval(metadata["ss_resolution"]) == (512, 512)
    assert metadata["ss_enable_bucket"] == "True"
    assert (metadata["ss_min_bucket_reso"], metadata["ss_max_bucket_reso"]) == ("384", "640")


def test_an_unbucketed_dataset_claims_no_buckets() -> None:
    metadata = build(Dataset((Picture(Path("a.png"), (8, 8), ""),)))
    assert metadata["ss_enable_bucket"] == "False"
    assert not {"ss_bucket_info", "ss_resolution", "ss_min_bucket_reso"} & set(metadata)


def test_readers_get_json_objects_where_they_parse_them() -> None:
    """Automatic1111 parses what begins with a brace, and wants these three to be objects."""
    metadata = build()
    for key in ("ss_bucket_info", "ss_dataset_dirs", "ss_tag_frequency"):
        assert metadata[key].startswith("{") and isinstance(json.loads(metadata[key]), dict)


def test_modelspec() -> None:
    metadata = build()
    spec = {key.removeprefix("modelspec."): value for key, value in metadata.items() if "modelspec." in key}
    date = spec.pop("date")
    assert len(date) == len("2023-11-14T22:13:20") and date[10] == "T"
    assert spec == {
        "sai_model_spec": "1.0.1",
        "architecture": "stable-diffusion-v1/lora",
        "implementation": "diffusers",
        "title": "my_lora",
        "resolution": "512x512",
        "prediction_type": "epsilon",
        "trigger_phrase": "zxc",
    }


def test_only_what_is_known_is_written() -> None:
    assert not [key for key in build() if "model_name" in key or "model_hash" in key or "guidance" in key]
    assert build()["ss_num_batches_per_epoch"] == "12"
    assert build(model=ModelFacts("Flux", takes_guidance=True), guidance=3.5)["ss_guidance_scale"] == "3.5"
    dataset = Dataset(make_dataset().pictures, resolution=512)
    assert "modelspec.trigger_phrase" not in build(dataset)


def test_our_own_keys() -> None:
    metadata = build()
    assert json.loads(metadata["lora_workbench.epoch_losses"]) == [0.375]
    assert float(metadata["lora_workbench.final_loss"]) == 0.25
    assert float(metadata["lora_workbench.mean_loss"]) == 0.375


@pytest.mark.parametrize(
    ("model_class", "version", "architecture"),
    [
        ("SD15", "sd_v1", "stable-diffusion-v1"),
        ("SD20", "sd_v2", "stable-diffusion-v2-512"),
        ("SDXL", "sdxl_base_v1-0", "stable-diffusion-xl-v1-base"),
        ("KOALA_700M", "sdxl_base_v1-0", "stable-diffusion-xl-v1-base"),
        ("Flux", "flux1", "flux-1-dev"),
        ("FluxSchnell", "flux1", "flux-1-schnell"),
        ("Chroma", "chroma", "chroma"),
        ("Lumina2", "lumina2", "lumina-2"),
        ("BrandNewModel", "brandnewmodel", "brandnewmodel"),
    ],
)
def test_published_names(model_class: str, version: str, architecture: str) -> None:
    facts = architecture_facts(model_class)
    assert (facts.base_version, facts.architecture) == (version, architecture)
    metadata = build(model=ModelFacts(model_class))
    assert metadata["ss_base_model_version"] == version
    assert metadata["modelspec.architecture"] == f"{architecture}/lora"


def test_v_prediction() -> None:
    metadata = build(model=ModelFacts("SD20", v_prediction=True))
    assert metadata["ss_base_model_version"] == "sd_v2_v" and metadata["ss_v2"] == "True"
    assert metadata["modelspec.architecture"] == "stable-diffusion-v2-768-v/lora"
    assert metadata["modelspec.prediction_type"] == "v"
    assert build(model=ModelFacts("SDXL", v_prediction=True))["ss_base_model_version"] == "sdxl_base_v1-0"
    assert build(model=ModelFacts("SD15", v_prediction=True))["ss_base_model_version"] == "sd_v1_v"


def test_flow_models_have_no_prediction_type() -> None:
    assert "modelspec.prediction_type" not in build(model=ModelFacts("Flux"))


def test_a_date_is_no_count() -> None:
    dataset = make_dataset()
    dated = dataset.with_pictures(replace(picture, concept="20240501_trip", repeats=1) for picture in dataset.pictures)
    assert list(json.loads(build(dated)["ss_dataset_dirs"])) == ["1_20240501_trip"]


def test_values_in_force_may_exceed_the_bounds_of_their_settings() -> None:
    """One picture and 150,000 steps make 150,000 epochs, more than anybody may ask for."""
    config = TrainConfig(steps=150_000, precision="auto")
    known = kohya_settings(config, {"epochs": 150_000, "precision": "bf16", "alpha": 16.0})
    assert (known["ss_num_epochs"], known["ss_max_train_steps"]) == (150_000, 150_000)
    assert (known["ss_mixed_precision"], known["ss_network_alpha"]) == ("bf16", 16.0)


def two_resolutions() -> Dataset:
    """One folder at 512 and 768, the second half as often, and regularization pictures at 512."""
    small = (picture("a.png", "zxc, hat", "10_girl", 10, (512, 512), class_word="girl"),
             picture("b.png", "zxc", "10_girl", 10, (640, 384), class_word="girl"))  # fmt: skip
    large = [
        replace(one, placement=Placement((768, 768), (768, 768), (0, 0)), own_resolution=768, repeats=5, flip=True)
        for one in small
    ]
    prior = picture("d.png", "a girl", "1_girls", 3, (512, 512), is_regularization=True)
    return Dataset((*small, *large, prior), name="pics", trigger="zxc", bucket_step=64, resolution=512)


def test_two_resolutions_are_two_datasets_as_in_kohyas_trainer() -> None:
    """sd-scripts #557, musubi-tuner #882."""
    metadata = build(two_resolutions())
    small, large = json.loads(metadata["ss_datasets"])
    assert (small["resolution"], large["resolution"]) == ([512, 512], [768, 768])
    assert (small["num_train_images"], small["num_reg_images"]) == (20, 3)
    assert (large["num_train_images"], large["num_reg_images"]) == (10, 0)
    assert [bucket["count"] for bucket in small["bucket_info"]["buckets"].values()] == [13, 10]
    assert large["bucket_info"]["buckets"] == {"0": {"resolution": [768, 768], "count": 10}}
    assert (small["min_bucket_reso"], large["min_bucket_reso"]) == (384, 768)
    told = [(part["num_repeats"], part["img_count"], part["is_reg"], part["flip_aug"]) for part in small["subsets"]]
    assert told == [(10, 2, False, False), (3, 1, True, False)]
    assert [(part["num_repeats"], part["img_count"], part["flip_aug"]) for part in large["subsets"]] == [(5, 2, True)]
    assert small["tag_frequency"] == large["tag_frequency"] == {"10_girl": {"zxc": 2, "hat": 1}}


def test_two_resolutions_in_the_keys_of_the_whole() -> None:
    metadata = build(two_resolutions())
    assert (metadata["ss_num_train_images"], metadata["ss_num_reg_images"]) == ("30", "3")
    # Viewers split at commas and take the first two numbers.
    assert metadata["ss_resolution"] == "(512, 512), (768, 768)"
    assert ast.literal_eval(metadata["ss_resolution"]) == ((512, 512), (768, 768))
    assert metadata["modelspec.resolution"] == "768x768"
    buckets = json.loads(metadata["ss_bucket_info"])["buckets"].values()
    assert [(bucket["resolution"], bucket["count"]) for bucket in buckets] == [
        ([512, 512], 13), ([640, 384], 10), ([768, 768], 10),
    ]  # fmt: skip
    # The same folder again has a number, as kohya gives it; its tags count once.
    assert json.loads(metadata["ss_dataset_dirs"]) == {
        "10_girl": {"n_repeats": 10, "img_count": 2},
        "10_girl (2)": {"n_repeats": 5, "img_count": 2},
    }
    assert json.loads(metadata["ss_tag_frequency"]) == {"10_girl": {"zxc": 2, "hat": 1}}


def test_the_base_model_is_named_where_its_file_is_known() -> None:
    metadata = build(model=ModelFacts("SD15", file_name="v1-5.safetensors", file_hash="6ce0161689"[:8]))
    assert (metadata["ss_sd_model_name"], metadata["ss_sd_model_hash"]) == ("v1-5.safetensors", "6ce01616")
