"""The same code trains every architecture: one loop, no branch per model."""

from __future__ import annotations

import math

import pytest
import torch
from support import small_models
from support.rig import Snapshot, rig, sample

NAMES = ["sd15", "sd15_two", "sd2_v", "sdxl", "sdxl_v", "sd3", "flux", "zimage", "qwen"]
# The last block's text branch of Qwen-Image never reaches the output, in the real model as well.
UNREACHED = {"qwen": ("transformer_blocks.1.txt_mlp", "transformer_blocks.1.attn.add_q_proj",
                      "transformer_blocks.1.attn.to_add_out")}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_trains_every_layer_and_gives_the_model_back(name, comfy_host, small_models_folder, tmp_path):
    patcher = small_models.build(name, small_models_folder)
    first = sample(patcher, name)
    before = Snapshot(patcher)
    with rig(name, small_models_folder, tmp_path, patcher=patcher, epochs=2) as it:
        start = [tensor.detach().clone() for tensor in it.network.parameters()]
        run = it.trainer.train()
    assert run.step == 4 and run.epoch == 2 and run.images == 8
    assert all(math.isfinite(loss) and 0 < loss < 100 for loss in run.losses)
    still = [
        layer.path
        for layer, down, up in zip(it.network.layers, start[::2], start[1::2], strict=True)
        if torch.equal(layer.down, down) or torch.equal(layer.up, up)
    ]
    assert [path for path in still if not path.startswith(UNREACHED.get(name, ("-",)))] == []
    assert before.differences(Snapshot(patcher)) == []
    assert torch.equal(first, sample(patcher, name))


def test_the_models_are_what_their_names_say(comfy_host, small_models_folder):
    from lora_workbench.training.host.model import HostModel

    kinds = {}
    for name in NAMES:
        model = HostModel(small_models.build(name, small_models_folder))
        kinds[name] = (model.prediction, model.is_flow)
    assert kinds == {
        "sd15": ("eps", False), "sd15_two": ("eps", False), "sd2_v": ("v_prediction", False),
        "sdxl": ("eps", False), "sdxl_v": ("v_prediction", False), "sd3": ("flow", True),
        "flux": ("flux", True), "zimage": ("flow", True), "qwen": ("flux", True),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["sd15", "sd3", "flux", "zimage"])
@pytest.mark.parametrize("setting", [{"gradient_checkpointing": True}, {"precision": "bf16"}], ids=str)
def test_memory_and_precision_settings_change_little(name, setting, comfy_host, small_models_folder, tmp_path):
    losses = []
    for settings in ({}, setting):
        with rig(name, small_models_folder, tmp_path, epochs=1, dropout=0.1, **settings) as it:
            losses.append(it.trainer.train().losses)
    # Checkpointing computes the very same numbers again; bf16 has eight bits of them.
    tolerance = 1e-6 if "gradient_checkpointing" in setting else 2e-2
    assert losses[0] == pytest.approx(losses[1], rel=tolerance)


def test_a_batch_is_the_sum_of_its_pictures(comfy_host, small_models_folder, tmp_path):
    """Per-picture conditioning: what a picture learns does not depend on who shares its batch."""
    with rig("sdxl", small_models_folder, tmp_path, batch_size=2) as it:
        batch = it.trainer.steps_of_epoch(0)[0][0]
        micro = it.trainer.prepare(batch)
        with torch.no_grad():
            together = it.model.denoised(micro.x0, micro.drawn.sigma, micro.conds)
            alone = torch.cat(
                [
                    it.model.denoised(micro.x0[i : i + 1], micro.drawn.sigma[i : i + 1], micro.conds[i : i + 1])
                    for i in range(2)
                ]
            )
            swapped = it.model.denoised(micro.x0, micro.drawn.sigma, micro.conds[::-1])
    assert torch.allclose(together, alone, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(together, swapped, atol=1e-2, rtol=1e-2), "captions and sizes have no effect"


@pytest.mark.parametrize("name", ["sd15", "sd3", "qwen"])
def test_captions_of_different_lengths_share_a_batch(name, comfy_host, small_models_folder, tmp_path):
    with rig(name, small_models_folder, tmp_path) as it:
        micro = it.trainer.prepare(it.trainer.steps_of_epoch(0)[0][0])
        noise = micro.drawn.noise[:1]
        length = small_models.conditioning(name, seed=0)[0][0].shape[1]
        longer = small_models.conditioning(name, seed=9, length=2 * length)
        conds = [micro.conds[0], it.model.conditions(longer, noise, {})]
        with torch.no_grad():
            both = it.model.denoised(micro.x0, micro.drawn.sigma, conds)
            one = it.model.denoised(micro.x0[1:], micro.drawn.sigma[1:], conds[1:])
    assert torch.allclose(both[1:], one, atol=1e-3, rtol=1e-3)
