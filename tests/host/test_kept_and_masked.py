"""What of a step's loss is another picture's affair: what is to be kept, what lies outside a mask, whose loss it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from support.rig import Rig, rig


def losses_of(it: Rig, batch: Any, micro: Any = None) -> list[float]:
    """The loss of each picture."""
    return it.step(batch, micro).losses.tolist()


@pytest.mark.parametrize("name", ["sd15", "sd3", "flux"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_is_to_be_kept_is_held_against_the_model_without_the_lora(
    name, checkpointing, comfy_host, small_models_folder, tmp_path
):
    settings = {"targets": ("picture", "model", "model"), "batch_size": 3, "gradient_checkpointing": checkpointing}
    with rig(name, small_models_folder, tmp_path, pictures=3, **settings) as it:
        ((batch,),) = it.steps()
        micro = it.prepare(batch)
        assert len(micro.preserved) == 2
        (learned,) = {0, 1, 2} - set(micro.preserved)
        losses = losses_of(it, batch)
        assert max(losses[n] for n in micro.preserved) < 1e-6, "a LoRA that does nothing preserves everything"
        assert losses[learned] > 0.1

        for layer in it.network.adapters:
            up = layer.up.master
            up.copy_(torch.randn(up.shape, generator=torch.Generator().manual_seed(layer.index)) * 0.1)
        it.network.flat.begin_step()
        # Of the preserved pictures alone.
        weights = torch.tensor([float(n in micro.preserved) for n in range(3)], device=micro.x0.device)
        losses = losses_of(it, batch, replace(micro, weights=weights))
        xt = it.model.noised(micro.x0, micro.drawn.noise, micro.drawn.sigma)
        with torch.no_grad():
            adapted = it.model.denoised(xt, micro.drawn.sigma, it.conditions(micro)).float()
            with it.network.switched_off():
                base = it.model.denoised(xt, micro.drawn.sigma, it.conditions(micro)).float()
        scale = it.model.output_scale(micro.drawn.sigma, xt.ndim)
        moved = ((adapted - base) / scale).square().flatten(1).mean(1)
        assert float(moved.min()) > 1e-4
        for n in micro.preserved:
            assert losses[n] == pytest.approx(float(moved[n]), rel=1e-4)
        # The gradient pulls the LoRA back to where it does nothing.
        gradients = [layer.up.total for layer in it.network.adapters]
        assert all(gradient.isfinite().all() and gradient.abs().max() > 0 for gradient in gradients)


@pytest.mark.parametrize("outside", [0.0, 0.25])
def test_what_lies_outside_a_mask_counts_less(outside, comfy_host, small_models_folder, tmp_path):
    """Wrong latents outside the mask change the loss by its weight, normalised, and by nothing at all at 0."""
    with rig("sd3", small_models_folder, tmp_path, pictures=2) as it:
        inside = torch.zeros(16, 16)
        inside[:, :8] = 1
        it.dataset = replace(
            it.dataset, pictures=tuple(replace(p, mask=p.path, outside=outside) for p in it.dataset.pictures)
        )
        (batch,) = it.steps()[0]
        it.setup.latents.cache.put("mask", {"mask": inside})
        it.setup.latents.masks.update({(0, False, 0): "mask", (1, False, 0): "mask"})
        micro = it.prepare(batch)
        assert micro.mask.shape == (2, 1, 16, 16)
        assert micro.mask[0, 0, 0].tolist() == [1.0] * 8 + [outside] * 8
        losses = torch.tensor(losses_of(it, batch))
        error = (
            it.model.denoised(it.model.noised(micro.x0, micro.drawn.noise, micro.drawn.sigma), micro.drawn.sigma,
                              it.conditions(micro)) - micro.x0
        ) / it.model.output_scale(micro.drawn.sigma, micro.x0.ndim)  # fmt: skip
        squared = error.square().mean(1)
        left, right = squared[..., :8].flatten(1).mean(1), squared[..., 8:].flatten(1).mean(1)
        expected = (left + outside * right) / (1 + outside)
        assert torch.allclose(losses, expected.detach().cpu(), rtol=1e-4)
        assert not torch.allclose(left, right, rtol=0.01)


def test_the_loss_of_each_concept_is_told(comfy_host, small_models_folder, tmp_path):
    with rig("sd3", small_models_folder, tmp_path, pictures=4, epochs=2) as it:
        pictures = it.dataset.pictures
        named = [replace(p, concept="ab"[n % 2], is_regularization=n == 3) for n, p in enumerate(pictures)]
        it.dataset = replace(it.dataset, pictures=tuple(named))
        run = it.train()
    assert set(run.concept_losses) == {"a", "b", "b (kept)"}
    for epoch in range(2):
        of = {name: losses[epoch] for name, losses in run.concept_losses.items()}
        assert run.epoch_losses[epoch] == pytest.approx((2 * of["a"] + of["b"] + of["b (kept)"]) / 4, rel=1e-5)
