"""The same code trains every architecture: one loop, no branch per model."""

from __future__ import annotations

import math

import pytest
import torch
from support import small_models
from support.rig import Snapshot, rig, sample, trained_tensors

KINDS = {
    "sd15": ("eps", False), "sd15_two": ("eps", False), "sd2_v": ("v_prediction", False),
    "sdxl": ("eps", False), "sdxl_v": ("v_prediction", False), "sd3": ("flow", True),
    "flux": ("flow", True), "zimage": ("flow", True), "qwen": ("flow", True),
}  # fmt: skip
NAMES = list(KINDS)
# The last block's text branch of Qwen-Image never reaches the output, in the real model as well.
UNREACHED = {"qwen": ("transformer_blocks.1.txt_mlp", "transformer_blocks.1.attn.add_q_proj",
                      "transformer_blocks.1.attn.to_add_out")}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_trains_every_layer_and_gives_the_model_back(name, comfy_host, small_models_folder, tmp_path):
    patcher = small_models.build(name, small_models_folder)
    first = sample(patcher, name)
    before = Snapshot(patcher)
    with rig(name, small_models_folder, tmp_path, patcher=patcher, epochs=2) as it:
        start = [tensor.detach().clone() for tensor in trained_tensors(it.network)]
        run = it.train()
    assert run.step == 4 and run.epoch == 2 and run.images == 8
    assert all(math.isfinite(loss) and 0 < loss < 100 for loss in run.losses)
    still = [
        layer.path
        for layer, down, up in zip(it.network.adapters, start[::2], start[1::2], strict=True)
        if torch.equal(layer.down.master, down) or torch.equal(layer.up.master, up)
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
    assert kinds == KINDS


@pytest.mark.parametrize("name", NAMES)
def test_what_the_loss_is_held_against(name, comfy_host, small_models_folder, tmp_path):
    """The textbook's target for each kind, from the network's own output: noise, v or velocity."""
    kind = KINDS[name][0]
    with rig(name, small_models_folder, tmp_path) as it:
        micro, outputs = it.prepare(), []
        hook = it.model.model.diffusion_model.register_forward_hook(lambda _m, _i, out: outputs.append(out.detach()))
        try:
            losses = it.step(micro=micro).losses.tolist()
        finally:
            hook.remove()
    noise, x0 = micro.drawn.noise, micro.x0
    sigma = micro.drawn.sigma.view(-1, *[1] * (x0.ndim - 1))
    target = {
        "eps": noise,
        # alpha · noise - sigma · x0 (Salimans & Ho 2022), with alpha² + sigma² = 1
        "v_prediction": (noise - sigma * x0) / (1 + sigma**2).sqrt(),
    }.get(kind, noise - x0)
    expected = (torch.cat(outputs).float() - target).square().flatten(1).mean(1)
    assert losses == pytest.approx(expected.tolist(), rel=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_checkpointing_gives_the_same_gradients(name, comfy_host, small_models_folder, tmp_path):
    """Computed again in backward, blocks give the very same numbers, whatever they change in place."""
    gradients = []
    for checkpointing in (False, True):
        with rig(name, small_models_folder, tmp_path, dropout=0.1, gradient_checkpointing=checkpointing) as it:
            for layer in it.network.adapters:
                source = torch.Generator().manual_seed(layer.index)
                layer.up.master.copy_(torch.randn(layer.up.master.shape, generator=source) * 0.02)
            it.step()
            gradients.append({layer.path: (layer.down.total, layer.up.total) for layer in it.network.adapters})
    for path, pair in gradients[0].items():
        for plain, again in zip(pair, gradients[1][path], strict=True):
            assert (plain is None) == (again is None), path
            assert plain is None or torch.allclose(plain, again, rtol=1e-4, atol=1e-7), path


@pytest.mark.parametrize("name", ["sd15", "sd3", "flux", "zimage", "qwen"])
def test_bf16_changes_little(name, comfy_host, small_models_folder, tmp_path):
    losses = []
    for precision in ("fp32", "bf16"):
        with rig(name, small_models_folder, tmp_path, epochs=1, dropout=0.1, precision=precision) as it:
            losses.append(it.train().losses)
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)


@pytest.mark.parametrize(("name", "copies"), [("sd15", False), ("flux", True)])
def test_norms_copy_their_input_only_where_the_model_adds_in_place(
    name, copies, comfy_host, small_models_folder, tmp_path
):
    with rig(name, small_models_folder, tmp_path) as it:
        norms = [m for m in it.model.model.diffusion_model.modules() if "norm" in type(m).__name__.lower()]
        assert any("forward" in vars(norm) for norm in norms) == copies
        assert not it.network.flat.total.any()
        assert it.run.micro_step == 0


def test_a_batch_is_the_sum_of_its_pictures(comfy_host, small_models_folder, tmp_path):
    """Per-picture conditioning: what a picture learns does not depend on who shares its batch."""
    with rig("sdxl", small_models_folder, tmp_path, batch_size=2) as it:
        batch = it.steps()[0][0]
        micro = it.prepare(batch)
        conds = it.conditions(micro)
        with torch.no_grad():
            together = it.model.denoised(micro.x0, micro.drawn.sigma, conds)
            alone = torch.cat(
                [
                    it.model.denoised(micro.x0[i : i + 1], micro.drawn.sigma[i : i + 1], conds[i : i + 1])
                    for i in range(2)
                ]
            )
            swapped = it.model.denoised(micro.x0, micro.drawn.sigma, conds[::-1])
    assert torch.allclose(together, alone, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(together, swapped, atol=1e-2, rtol=1e-2), "captions and sizes have no effect"


@pytest.mark.parametrize("name", ["sd15", "sd3", "qwen"])
def test_captions_of_different_lengths_share_a_batch(name, comfy_host, small_models_folder, tmp_path):
    with rig(name, small_models_folder, tmp_path) as it:
        micro = it.prepare()
        noise = micro.drawn.noise[:1]
        length = small_models.conditioning(name, seed=0)[0][0].shape[1]
        longer = small_models.conditioning(name, seed=9, length=2 * length)
        conds = [it.conditions(micro)[0], it.model.conditions(longer, noise, {})]
        with torch.no_grad():
            both = it.model.denoised(micro.x0, micro.drawn.sigma, conds)
            one = it.model.denoised(micro.x0[1:], micro.drawn.sigma[1:], conds[1:])
    assert torch.allclose(both[1:], one, atol=1e-3, rtol=1e-3)
