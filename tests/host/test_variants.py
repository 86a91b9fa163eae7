"""A step shows one variant of each picture: its latent, its mask and the corner of its crop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.rig import rig


@pytest.mark.parametrize("flip", [False, True])
def test_latent_mask_and_crop_are_the_variants(flip, comfy_host, small_models_folder: Path, tmp_path: Path):
    from lora_workbench.training.data.dataset import Placement

    whole = Placement((128, 128), (192, 160), (32, 16))
    with rig("sdxl", small_models_folder, tmp_path, pictures=2, batch_size=2) as it:
        latents, pictures = it.setup.latents, it.dataset.pictures
        varied = replace(
            pictures[0], placement=whole, flip=flip, random_crop=True, variants=3, mask=Path("m.png"), outside=0.25
        )
        it.dataset = replace(it.dataset, pictures=(varied, pictures[1]))
        for number in range(3):
            for mirrored in (False, True):
                value = 10.0 * number + 5 * mirrored + 1
                key = f"{number}{mirrored}"
                latents.cache.put(key, {"latent": torch.full((1, 4, 16, 16), value)})
                latents.cache.put(f"mask{key}", {"mask": torch.full((16, 16), number / 4)})
                latents.keys[0, mirrored, number] = key
                latents.masks[0, mirrored, number] = f"mask{key}"
            latents.crops[0, number] = replace(whole, offset=(8 * number, 24 - 8 * number))
        seen = set()
        unit = float(it.model.latents_in(torch.ones(1, 4, 16, 16)).mean())
        for epoch in range(8):
            ((batch,),) = it.steps(epoch)
            place = batch.indices.index(0)
            _, mirrored, number = batch.shown[place]
            seen.add((mirrored, number))
            micro = it.prepare(batch)
            assert float(micro.x0[place].mean()) == pytest.approx((10 * number + 5 * mirrored + 1) * unit, rel=1e-5)
            assert float(micro.mask[place].mean()) == pytest.approx(0.25 + 0.75 * number / 4)
            assert float(micro.mask[1 - place].mean()) == 1
            left = 192 - 128 - 8 * number if mirrored else 8 * number
            assert (micro.extras[place]["crop_w"], micro.extras[place]["crop_h"]) == (left, 24 - 8 * number)
            assert (micro.extras[1 - place]["crop_w"], micro.extras[1 - place]["crop_h"]) == (0, 0)
            it.run.micro_step += 1
        assert {number for _, number in seen} == {0, 1, 2} and {mirrored for mirrored, _ in seen} == {False, flip}
