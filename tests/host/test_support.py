"""The small models, checkpoints and photos that the other host tests stand on."""

from __future__ import annotations

import logging
import re

import numpy as np
import pytest
import torch
from PIL import Image
from support import small_models
from support.photos import PHOTOS, photo, write_photos

MODEL_TYPES = {"sd15": "EPS", "sd15_two": "EPS", "sd2_v": "V_PREDICTION", "sdxl": "EPS",
               "sdxl_v": "V_PREDICTION", "sd3": "FLOW", "flux": "FLUX", "zimage": "FLOW", "qwen": "FLUX",
               "pixart": "EPS", "pixeldit": "FLOW", "pid": "FLOW"}


def denoise(patcher, name: str, side: int, batch: int = 1) -> torch.Tensor:
    """One plain forward at mid noise, as a sampler would ask for it: the model's estimate of the image."""
    base = patcher.model
    latent = torch.randn(small_models.latent_shape(name, side, side, batch))
    [[text, options]] = small_models.conditioning(name, seed=3, batch=batch)
    conds = base.extra_conds(cross_attn=text, noise=latent, device=latent.device, **options)
    conds = {key: value.process_cond(batch_size=batch, area=None).cond for key, value in conds.items()}
    sigma = torch.full((batch,), float(base.model_sampling.percent_to_sigma(0.5)))
    return base.apply_model(latent * sigma[0], sigma, transformer_options={}, **conds)


@pytest.mark.parametrize("name", small_models.SPECS)
def test_small_model(name, comfy_host, small_models_folder, caplog):
    if not small_models.is_known(name):
        pytest.skip("this ComfyUI does not know the model")
    with caplog.at_level(logging.WARNING):
        patcher = small_models.build(name, small_models_folder)
    assert "unet missing" not in caplog.text
    base = patcher.model
    assert base.model_type.name == MODEL_TYPES[name]
    assert all(weight.is_inference() for weight in base.parameters()), "not as in a server"

    side = {"sd2_v": 16, "pixart": 34, "pixeldit": 64, "pid": 64}.get(name, 8)
    with torch.inference_mode():
        out = denoise(patcher, name, side, batch=2)
    assert out.shape == small_models.latent_shape(name, side, side, 2)
    assert torch.isfinite(out).all()
    assert 0.05 < out.std() < 50


def test_detection_is_restored(comfy_host, small_models_folder):
    import comfy.model_detection

    before = comfy.model_detection.model_config_from_unet
    small_models.build("zimage", small_models_folder)
    assert comfy.model_detection.model_config_from_unet is before


# What the host says about a checkpoint that has all it needs: neither is in SD checkpoints in circulation.
HARMLESS = ("clip_l.logit_scale", "clip_l.transformer.text_projection.weight")


@pytest.mark.parametrize("write", [small_models.checkpoint_sd15, small_models.checkpoint_sd3])
def test_checkpoint_loads_whole(write, comfy_host, small_models_folder, caplog):
    with caplog.at_level(logging.DEBUG):
        load(small_models.cached(write, small_models_folder))
    for message in caplog.messages:
        if "torchaudio" in message:
            continue
        for harmless in HARMLESS:
            message = message.replace(f"'{harmless}'", "")
        assert not re.search(r"(missing|unexpected|left over)[^a-z]*[a-z]", message, re.IGNORECASE), message


@pytest.mark.parametrize("write", [small_models.checkpoint_sd15, small_models.checkpoint_sd3])
def test_checkpoint_works(write, comfy_host, small_models_folder):
    """Captions differ, photos survive the VAE, latents have unit size, sampling stays finite."""
    import comfy.sample

    model, clip, vae = load(small_models.cached(write, small_models_folder))
    with torch.inference_mode():
        cat, rocket, empty = (clip.encode_from_tokens_scheduled(clip.tokenize(text))
                              for text in ("a cat", "a red rocket", ""))
        assert (cat[0][0] - rocket[0][0]).abs().max() > 1

        coarse = photo("astronaut").resize((8, 12)).resize((64, 96), Image.Resampling.NEAREST)
        pixels = torch.from_numpy(np.asarray(coarse, np.float32))[None] / 255
        latent = vae.encode(pixels)
        assert latent.shape == (1, model.model.latent_format.latent_channels, 12, 8)
        assert 0.3 < model.model.process_latent_in(latent).std() < 2
        assert (vae.decode(latent) - pixels).abs().max() < 0.1

        noise = comfy.sample.prepare_noise(latent, 0)
        image = comfy.sample.sample(model, noise, 2, 4.0, "euler", "normal", cat, empty, latent, seed=0)
    assert image.shape == latent.shape
    assert torch.isfinite(image).all()


def load(file):
    import comfy.sd

    with torch.inference_mode():
        return comfy.sd.load_checkpoint_guess_config(str(file))[:3]


def test_photos(tmp_path):
    files = write_photos(tmp_path / "3_photo", longest=128)
    shapes = [Image.open(file).size for file in files]
    assert {file.stem for file in files} == set(PHOTOS)
    assert max(max(shape) for shape in shapes) == 128
    assert any(w > h for w, h in shapes) and any(h > w for w, h in shapes) and any(w == h for w, h in shapes)
    assert all(file.with_suffix(".txt").read_text() for file in files)


def test_nodes_is_the_hosts_module(comfy_host):
    """The pack has a folder `nodes` too; which one `import nodes` finds must not depend on how pytest starts."""
    import nodes

    assert nodes.__file__ == str(comfy_host.path / "nodes.py")
