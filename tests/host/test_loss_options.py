"""Loss Options on small models: every option trains, and the sampling in force decides what is trained."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from support import small_models
from support.rig import rig, trained_tensors

EVERYTHING: dict[str, Any] = {
    "loss": "Huber", "noise_offset": 0.1, "noise_offset_adaptive": 0.05, "noise_offset_random": True,
    "ip_noise_gamma": 0.1, "ip_noise_random": True, "min_timestep": 50, "max_timestep": 950,
}  # fmt: skip
PYRAMID: dict[str, Any] = {"noise_offset": 0.0, "noise_offset_adaptive": 0.0, "multires_iterations": 6}
MODELS: dict[str, dict[str, Any]] = {
    "sd15": {"weighting": "P2", "huber_schedule": "snr", "timesteps": "mode", "mode_scale": 0.5},
    "sdxl_v": {"weighting": "soft min-SNR", "loss": "smooth L1", "timesteps": "logit-normal", "timestep_mean": 0.5,
               **PYRAMID},
    "sd3": {"timestep_mean": 0.5, "timestep_spread": 1.5, "shift": 5.0, "loss": "L1"},
    "flux": {"resolution_shift": True, "timestep_spread": 0.8, **PYRAMID},
    "qwen": {"shift": 2.0, "timesteps": "mode"},  # latents with a dimension of time
    "qwen_pyramid": PYRAMID,
}


def sampled(model: str, folder: Any, node: str, *arguments: Any) -> Any:
    """A small model behind one of ComfyUI's own ModelSampling nodes."""
    from comfy_extras import nodes_model_advanced

    patcher = small_models.build(model, folder)
    return getattr(nodes_model_advanced, node)().patch(patcher, *arguments)[0]


def metadata(it: Any) -> dict[str, str]:
    """What a file of this run says."""
    from lora_workbench.training.run.keeper import Keeper

    keeper = Keeper(it.model, it.setup.plan, it.run, torch.float32, it.setup.ladder, it.sink, (0, 0), 0.0)
    keeper.folder = type("Folder", (), {"name": "run", "path": "run"})()
    return keeper.lora().metadata


@pytest.mark.parametrize("name", MODELS)
def test_every_option_trains(name, comfy_host, small_models_folder, tmp_path):
    from lora_workbench.training.objective import refuse_unfit

    settings, targets = {**EVERYTHING, **MODELS[name]}, ["picture", "model", "picture", "picture"]
    with rig(name.split("_pyramid")[0], small_models_folder, tmp_path, epochs=1, targets=targets, **settings) as it:
        refuse_unfit(it.model, it.setup.plan.config)
        micro = it.prepare()
        assert micro.drawn.noise.shape == micro.drawn.seen.shape == micro.x0.shape
        assert (micro.widths is None) == (it.setup.plan.config.loss == "L1")
        for part, at in zip(micro.parts(1), range(2), strict=True):
            assert torch.equal(part.drawn.seen[0], micro.drawn.seen[at])
            assert all(one is None or one == whole[at] for one, whole in (
                (part.widths, micro.widths), (part.weights, micro.weights)
            ))  # fmt: skip
        losses = it.train().losses
        assert all(tensor.isfinite().all() for tensor in trained_tensors(it.network))
    assert all(math.isfinite(loss) and 0 < loss < 100 for loss in losses)


@pytest.mark.parametrize(
    ("prediction", "weighting"),
    [("eps", "min-SNR"), ("eps", "debiased"), ("v_prediction", "none"), ("v_prediction", "soft min-SNR")],
)
def test_zero_terminal_snr_trains(prediction, weighting, comfy_host, small_models_folder, tmp_path):
    patcher = sampled("sd15", small_models_folder, "ModelSamplingDiscrete", prediction, True)
    settings = {"weighting": weighting, "min_timestep": 999, "ip_noise_gamma": 0.1, "noise_offset": 0.1}
    with rig("sd15", small_models_folder, tmp_path, patcher=patcher, **settings) as it:
        assert it.prepare().drawn.sigma.tolist() == pytest.approx([4518.765] * 2, rel=1e-3)
        losses = it.step().losses
        assert losses.isfinite().all() and 0 < losses.max() < 100
        assert it.network.flat.total.isfinite().all()


def test_the_sampling_in_force_decides_what_is_trained(comfy_host, small_models_folder, tmp_path):
    """An eps model behind ModelSamplingDiscrete (v_prediction, zsnr) is trained on v, over that schedule."""
    patcher = sampled("sd15", small_models_folder, "ModelSamplingDiscrete", "v_prediction", True)
    with rig("sd15", small_models_folder, tmp_path, patcher=patcher) as it:
        assert it.model.prediction == "v_prediction" and it.model.zero_terminal_snr
        assert it.setup.levels.table[-1] > 4000
        micro, outputs = it.prepare(), []
        hook = it.model.model.diffusion_model.register_forward_hook(lambda _m, _i, out: outputs.append(out.detach()))
        try:
            losses = it.step(micro=micro).losses.tolist()
        finally:
            hook.remove()
        said = metadata(it)
    sigma = micro.drawn.sigma.view(-1, 1, 1, 1)
    v = (micro.drawn.noise - sigma * micro.x0) / (1 + sigma**2).sqrt()
    expected = (torch.cat(outputs).float() - v).square().flatten(1).mean(1)
    assert losses == pytest.approx(expected.tolist(), rel=1e-3)
    assert (said["modelspec.prediction_type"], said["ss_v_parameterization"]) == ("v", "True")
    assert (said["ss_zero_terminal_snr"], said["ss_base_model_version"]) == ("True", "sd_v1_v")


@pytest.mark.parametrize("name", ["sd15", "sdxl_v", "sd3"])
def test_input_perturbation_keeps_the_target(name, comfy_host, small_models_folder, tmp_path):
    """The model sees the noise and more, and is asked for the noise alone (arXiv:2301.11706, algorithm 1)."""
    with rig(name, small_models_folder, tmp_path, ip_noise_gamma=0.3) as it:
        micro, seen = it.prepare(), []
        is_flow, is_v = it.model.is_flow, it.model.prediction == "v_prediction"

        def keep(_module: Any, inputs: Any, out: Any) -> None:
            seen.append((inputs[0].detach().float(), out.detach().float()))

        hook = it.model.model.diffusion_model.register_forward_hook(keep)
        try:
            losses = it.step(micro=micro).losses.tolist()
        finally:
            hook.remove()
    sigma, noise, x0 = micro.drawn.sigma.view(-1, 1, 1, 1), micro.drawn.noise, micro.x0
    alpha, part = ((1 - sigma), sigma) if is_flow else (1 / (1 + sigma**2).sqrt(), sigma / (1 + sigma**2).sqrt())
    given, out = (torch.cat(each) for each in zip(*seen, strict=True))
    torch.testing.assert_close(given, alpha * x0 + part * (noise + micro.drawn.extra), rtol=1e-3, atol=1e-3)
    target = noise - x0 if is_flow else alpha * noise - part * x0 if is_v else noise
    assert losses == pytest.approx((out - target).square().flatten(1).mean(1).tolist(), rel=1e-3)


def test_a_preserved_picture_has_no_loss_at_first(comfy_host, small_models_folder, tmp_path):
    """Also under input perturbation: model and LoRA see the same."""
    with rig("sd15", small_models_folder, tmp_path, targets=["model"] * 4, ip_noise_gamma=0.3) as it:
        assert it.step().losses.max() < 1e-8


def test_weights_multiply_those_of_the_pictures(comfy_host, small_models_folder, tmp_path):
    gradients = []
    for weighting in ("none", "min-SNR"):
        with rig("sd15", small_models_folder, tmp_path, batch_size=1, weighting=weighting, gamma=0.01) as it:
            micro = it.prepare()
            losses = it.step().losses
            gradients.append((losses, it.network.flat.total.clone()))
    weight = min(0.01 * float(micro.drawn.sigma) ** 2, 1.0)
    assert weight < 1 and micro.weights.tolist() == pytest.approx([weight])
    assert torch.equal(gradients[0][0], gradients[1][0])  # losses are shown without it
    torch.testing.assert_close(gradients[0][1] * weight, gradients[1][1], rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize(
    ("node", "arguments", "shift"),
    [
        ("ModelSamplingSD3", (5.0,), 5.0),
        # mu at 512 × 512: 1,024 tokens.
        ("ModelSamplingFlux", (1.15, 0.5, 512, 512), math.exp(0.5 + 0.65 * 768 / 3840)),
    ],
)
def test_a_flow_is_trained_with_the_shift_in_force(node, arguments, shift, comfy_host, small_models_folder, tmp_path):
    patcher = sampled("sd3", small_models_folder, node, *arguments)
    medians, said = [], []
    for settings in ({}, {"shift": 2.0}, {"resolution_shift": True, "timestep_spread": 0.5}):
        with rig("sd3", small_models_folder, tmp_path, patcher=patcher, side=256, **settings) as it:
            sigma, _ = it.setup.levels.draw(20_000, 256, torch.Generator().manual_seed(1))
            medians.append(sigma.median().item())
            said.append(metadata(it))
    expected = [shift / (shift + 1), 2 / 3, math.exp(0.5) / (math.exp(0.5) + 1)]
    assert medians == pytest.approx(expected, abs=0.01)
    assert float(said[0]["ss_discrete_flow_shift"]) == pytest.approx(shift, rel=1e-4)
    assert (said[0]["ss_timestep_sampling"], said[0]["ss_sigmoid_scale"]) == ("shift", "1.0")
    assert said[1]["ss_discrete_flow_shift"] == "2.0" and "ss_discrete_flow_shift" not in said[2]
    assert (said[2]["ss_timestep_sampling"], said[2]["ss_sigmoid_scale"]) == ("flux_shift", "0.5")
    assert "modelspec.prediction_type" not in said[0] and said[0]["ss_v_parameterization"] == "False"


def test_other_ways_of_drawing_are_saved_in_kohyas_words(comfy_host, small_models_folder, tmp_path):
    with rig("sd3", small_models_folder, tmp_path, timesteps="mode", mode_scale=0.8) as it:
        mode = metadata(it)
    assert (mode["ss_weighting_scheme"], mode["ss_mode_scale"]) == ("mode", "0.8")
    assert (mode["ss_timestep_sampling"], mode["ss_discrete_flow_shift"]) == ("sigma", "3.0")
    with rig("sd3", small_models_folder, tmp_path, timestep_mean=0.5) as it:
        moved = metadata(it)
    assert (moved["ss_weighting_scheme"], moved["ss_logit_mean"]) == ("logit_normal", "-0.5")
    with rig("sd15", small_models_folder, tmp_path, weighting="min-SNR", noise_offset=0.05, loss="Huber") as it:
        said = metadata(it)
    assert (said["ss_min_snr_gamma"], said["ss_noise_offset"], said["ss_loss_type"]) == ("5.0", "0.05", "huber")
    assert (said["modelspec.prediction_type"], said["ss_zero_terminal_snr"]) == ("epsilon", "False")
    assert "ss_timestep_sampling" not in said and said["ss_multires_noise_iterations"] == "None"
    assert json.loads(said["ss_network_args"]) == {}


@pytest.mark.parametrize(
    ("sampling", "prediction", "is_flow"),
    [
        (("ModelSamplingDiscrete", "eps", False), "eps", False),
        (("ModelSamplingDiscrete", "lcm", False), "eps", False),
        (("ModelSamplingDiscrete", "x0", False), "x0", False),
        (("ModelSamplingDiscrete", "img_to_img", False), "img_to_img", False),
        (("ModelSamplingContinuousEDM", "edm", 80.0, 0.002), "edm", False),
        (("ModelSamplingContinuousEDM", "cosmos_rflow", 80.0, 0.002), "cosmos_rflow", False),
        (("ModelSamplingContinuousV", "v_prediction", 500.0, 0.03), "v_prediction", False),
        (("ModelSamplingStableCascade", 2.0), "eps", False),
        (("ModelSamplingSD3", 3.0), "flow", True),
        (("ModelSamplingFlux", 1.15, 0.5, 1024, 1024), "flow", True),
    ],
)
def test_what_a_model_predicts_is_that_of_its_sampling(sampling, prediction, is_flow, comfy_host, small_models_folder):
    from lora_workbench.training.host.model import HostModel

    model = HostModel(sampled("sd15", small_models_folder, *sampling))
    assert (model.prediction, model.is_flow) == (prediction, is_flow)


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        ("sd3", {"weighting": "min-SNR"}, "weighting is min-SNR.*flow model.*to none"),
        ("sd15", {"weighting": "scale v like noise"}, "predicts noise.*to none"),
        ("sd3", {"loss": "Huber", "huber_schedule": "snr"}, "huber schedule is snr.*exponential"),
        ("sd15", {"shift": 3.0}, "shift is 3.*not a flow model"),
        ("sdxl_v", {"resolution_shift": True}, "resolution shift is on.*not a flow model"),
        ("sd15", {"timestep_mean": 1.0}, "timestep mean is 1.*uniform.*to logit-normal"),
        ("sd3", {"timestep_spread": 2.0, "timesteps": "mode"}, "timestep spread is 2.*mode.*to logit-normal"),
        ("sd3", {"mode_scale": 1.0}, "mode scale is 1.*logit-normal.*to mode"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(name, settings, sentence, comfy_host, small_models_folder):
    from lora_workbench.training.config import TrainConfig
    from lora_workbench.training.errors import SettingError
    from lora_workbench.training.host.model import HostModel
    from lora_workbench.training.objective import refuse_unfit

    model = HostModel(small_models.build(name, small_models_folder))
    refuse_unfit(model, TrainConfig())
    with pytest.raises(SettingError, match=sentence):
        refuse_unfit(model, TrainConfig(**settings))


def test_the_trainer_refuses_it_before_any_work(comfy_host, small_models_folder):
    from pathlib import Path

    from lora_workbench.training.config import TrainConfig
    from lora_workbench.training.data.dataset import Dataset, Picture, Placement
    from lora_workbench.training.errors import SettingError
    from lora_workbench.training.host.model import HostModel
    from lora_workbench.training.preflight import check

    place = Placement((64, 64), (64, 64), (0, 0))
    dataset = Dataset((Picture(Path("a.png"), (64, 64), "a", placement=place),), bucket_step=64, resolution=64)
    model = HostModel(small_models.build("sd3", small_models_folder))
    with pytest.raises(SettingError, match="weighting is P2"):
        check(model, object(), object(), dataset, TrainConfig(weighting="P2"))


def test_the_node_draws_what_the_engine_draws(comfy_host, small_models_folder):
    from lora_workbench.nodes.loss_options import LossOptions
    from lora_workbench.training.options import LossOptions as Options

    options, empty = LossOptions.execute(weighting="min-SNR").result
    assert options == Options(weighting="min-SNR") and empty.shape[-2:] == (1200, 3)
    model = sampled("sd15", small_models_folder, "ModelSamplingDiscrete", "v_prediction", True)
    pictures = {}
    for name, given in {
        "plain": {}, "weighted": {"weighting": "min-SNR"}, "range": {"min_timestep": 500},
        "middle": {"picture_timesteps": "logit-normal"}, "refused": {"shift": 3.0},
    }.items():  # fmt: skip
        result = LossOptions.execute(model=model, **given)
        assert len(result.ui["images"]) == 1
        pictures[name] = result.result[1]
    blue = {
        name: ((picture[0, 84:404] - torch.tensor([122, 196, 255]) / 255).abs().sum(-1) < 0.01).sum(0)
        for name, picture in pictures.items()
    }
    assert blue["plain"][100:1160].max() > 0 and blue["range"][100:600].sum() == 0 < blue["range"][640:1100].sum()
    assert blue["middle"][600:640].sum() > 2 * blue["middle"][100:140].sum()
    assert not torch.equal(pictures["plain"], pictures["weighted"])
    assert pictures["refused"].shape[1] > pictures["plain"].shape[1]  # a sentence below
