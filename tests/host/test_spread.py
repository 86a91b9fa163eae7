"""Latents with mean and spread: how they are encoded by a real autoencoder of the host, and drawn in a step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from support.rig import rig
from support.small_vae import vae_of
from torch import Tensor

PIXELS = np.random.default_rng(0).random((64, 96, 3), dtype=np.float32)


def posterior_of(vae: Any, pixels: np.ndarray = PIXELS) -> Any:
    """The distribution that the model encodes a picture as, by the host's own class."""
    from comfy.ldm.modules.distributions.distributions import DiagonalGaussianDistribution

    model = vae.first_stage_model
    x = vae.process_input(torch.from_numpy(pixels)[None].movedim(-1, 1)).to(vae.vae_dtype)
    return DiagonalGaussianDistribution(model.quant_conv(model.encoder(x)).float())


def held(vae: Any) -> tuple[Any, ...]:
    """Everything of a VAE that must stay as it was."""
    model = vae.first_stage_model
    tensors = model.state_dict(keep_vars=True)
    return (
        {name: (id(tensor), tensor.data_ptr(), tensor.float().sum().item()) for name, tensor in tensors.items()},
        [(name, id(part), sorted(vars(part))) for name, part in model.named_modules()],
        {name: id(value) for name, value in vars(vae).items() if name != "size"},
    )


@pytest.mark.parametrize("sampling", [False, True])
@torch.inference_mode()
def test_mean_and_spread_are_those_of_the_posterior(sampling, comfy_host):
    from lora_workbench.training.host.vae import HostVAE, has_spread, latent_shape_of

    vae = vae_of()
    vae.first_stage_model.regularization.sample = sampling  # as in other releases of the host
    torch.manual_seed(3)
    plain = vae.encode(torch.from_numpy(PIXELS)[None])  # loads it, which is the host's own change
    before = held(vae)
    state = torch.random.get_rng_state()
    entry = HostVAE(vae).encode(PIXELS)
    assert torch.equal(torch.random.get_rng_state(), state)
    posterior = posterior_of(vae)
    assert sorted(entry) == ["latent", "spread"] and has_spread(vae)
    assert torch.equal(entry["latent"], posterior.mode()) and torch.equal(entry["spread"], posterior.std)
    assert entry["latent"].shape == entry["spread"].shape == latent_shape_of(vae, (96, 64))
    assert float(entry["spread"].min()) > 0 and entry["spread"].unique().numel() > 100
    assert held(vae) == before
    torch.manual_seed(3)
    assert torch.equal(vae.encode(torch.from_numpy(PIXELS)[None]), plain), "the VAE encodes otherwise afterwards"


@torch.inference_mode()
def test_draws_are_distributed_as_the_hosts_samples(comfy_host, tmp_path):
    from lora_workbench.training.cache.latents import store_latents
    from lora_workbench.training.cache.store import TensorCache
    from lora_workbench.training.data.dataset import Dataset, Picture, Placement
    from lora_workbench.training.draws import generator
    from lora_workbench.training.events import SilentSink
    from lora_workbench.training.host.vae import HostVAE

    vae = vae_of()
    Image.fromarray((PIXELS * 255).astype(np.uint8)).save(tmp_path / "a.png")
    place = Placement((96, 64), (96, 64), (0, 0))
    dataset = Dataset((Picture(tmp_path / "a.png", (96, 64), "", placement=place),))
    store = store_latents(dataset, HostVAE(vae), TensorCache(tmp_path / "cache"), SilentSink())
    pixels = np.asarray(Image.open(tmp_path / "a.png"), np.float32) / 255
    posterior = posterior_of(vae, pixels)
    ours = torch.cat([store.draw(0, False, 0, generator(0, "latent", n)) for n in range(400)])
    theirs = torch.cat([posterior.sample() for _ in range(400)])
    for drawn in (ours, theirs):
        off = (drawn.mean(0) - posterior.mean[0]) / posterior.std[0]
        assert float(off.abs().mean()) < 0.06 and float(off.abs().max()) < 0.25  # 1 / sqrt(400) = 0.05
        assert torch.allclose(drawn.std(0) / posterior.std[0], torch.ones(()), atol=0.2)
    assert torch.equal(store.load(0, False), posterior.mean)


@torch.inference_mode()
def test_tiles_are_blended_for_both(comfy_host):
    """The host falls back to tiles where memory is short."""
    from comfy import model_management
    from lora_workbench.training.host.vae import HostVAE

    vae = vae_of()
    pixels = np.random.default_rng(1).random((576, 640, 3), dtype=np.float32)
    short = mock.patch.object(model_management, "load_models_gpu", side_effect=[model_management.OOM_EXCEPTION] * 3)
    before = held(vae)
    tiled = mock.patch.object(vae, "encode_tiled_", wraps=vae.encode_tiled_)
    with short, tiled as counted:
        entry = HostVAE(vae).encode(pixels)
    assert counted.call_count == 3 and held(vae) == before
    posterior = posterior_of(vae, pixels)
    for found, whole in ((entry["latent"], posterior.mean), (entry["spread"], posterior.std)):
        assert 0 < float((found - whole).abs().mean()) < 0.1 * float(whole.std())


@torch.inference_mode()
def test_a_model_that_scales_its_latents_scales_the_spread(comfy_host):
    """As Flux 2's does, with a batch norm behind the regularizer."""
    from lora_workbench.training.host.vae import HostVAE

    vae = vae_of(batch_norm_latent=True)
    model = vae.first_stage_model
    entry, posterior = HostVAE(vae).encode(PIXELS), posterior_of(vae)

    def packed(z: Tensor) -> Tensor:
        return torch.nn.functional.pixel_unshuffle(z, 2)

    scale = (model.bn.running_var + model.bn_eps).sqrt().view(1, -1, 1, 1)
    assert torch.allclose(entry["spread"], packed(posterior.std) / scale, rtol=1e-4, atol=1e-6)
    mean = (packed(posterior.mean) - model.bn.running_mean.view(1, -1, 1, 1)) / scale
    assert torch.allclose(entry["latent"], mean, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_a_retry_in_fp32_has_a_spread_too(comfy_host):
    from lora_workbench.training.host import vae as module

    half, full = vae_of(torch.bfloat16), vae_of()
    for name, tensor in half.first_stage_model.state_dict().items():
        full.first_stage_model.state_dict()[name].copy_(tensor)
    host = module.HostVAE(half)
    rough, before = host.encode(PIXELS), held(half)
    with mock.patch.object(module, "_in_fp32", lambda _: full):  # the host cannot tell so small a model by its weights
        again = host.encode_in_fp32(PIXELS)
    assert again is not None and torch.equal(again["spread"], posterior_of(full).std)
    assert rough["spread"].dtype == torch.float32 and torch.allclose(rough["spread"], again["spread"], rtol=0.1)
    assert held(half) == before


@torch.inference_mode()
def test_the_vae_is_as_before_after_an_error(comfy_host):
    import comfy.sd
    from lora_workbench.training.host.vae import HostVAE

    vae = vae_of()
    regularizer = vae.first_stage_model.regularization
    before = held(vae)
    with mock.patch.object(comfy.sd.VAE, "encode", side_effect=MemoryError), pytest.raises(MemoryError):
        HostVAE(vae).encode(PIXELS)
    assert held(vae) == before
    regularizer.forward = kept = lambda z: (z[:, :4], None)  # another node's
    HostVAE(vae).encode(PIXELS)
    assert regularizer.forward is kept


def test_how_a_step_draws_its_latents(comfy_host, small_models_folder: Path, tmp_path: Path):
    settings = {"pictures": 2, "epochs": 2}
    with rig("sd15", small_models_folder, tmp_path, **settings) as it:
        config, cache = it.setup.plan.config, it.setup.latents.cache
        (batch,) = it.steps()[0]

        def drawn(latents: str, micro_step: int) -> Tensor:
            it.setup.plan.config = replace(config, latents=latents)
            it.run.micro_step = micro_step
            return it.prepare(batch).x0

        mean = torch.cat([it.setup.latents.load(*view) for view in batch.shown])
        scaled = it.model.latents_in(mean.to(it.model.device)).float()
        for choice in ("new each step", "drawn once", "mean"):
            assert torch.equal(drawn(choice, 0), scaled), "without a spread there is nothing to draw"
        for n in range(2):
            tensors = cache.get(f"latent{n}")[0]
            cache.put(f"latent{n}", {**tensors, "spread": torch.full_like(tensors["latent"], 0.5)})
        assert torch.equal(drawn("mean", 0), scaled)
        new, once = ([drawn(choice, step) for step in (0, 1, 0)] for choice in ("new each step", "drawn once"))
        assert torch.equal(new[0], new[2]) and not torch.equal(new[0], new[1])
        assert torch.equal(once[0], once[1]) and not torch.equal(once[0], new[0])
        unit = it.model.latents_in(torch.ones_like(mean)).float() - it.model.latents_in(torch.zeros_like(mean)).float()
        for x0 in (*new, *once):
            noise = (x0 - scaled) / unit
            assert abs(float(noise.mean())) < 0.05 and float(noise.std()) == pytest.approx(0.5, abs=0.03)
            assert not torch.allclose(noise[0], noise[1], atol=0.1), "two pictures have the same draw"
