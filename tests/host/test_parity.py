"""The same training by diffusers and peft: the engine's losses, gradients and weights held against theirs.

What both are given is latents before scaling, captions, noise, noise levels, mirroring and the LoRA's first
weights. Everything after that the reference does by itself, as a training script of diffusers does it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from support import small_models
from support.marks import long_but
from support.reference import Ask, an_ask, ask_host, ask_twin, diffusers_twin, fuse_projections, text_of, twin_modules
from support.rig import Rig, rig
from support.small_text import small_clip
from torch import Tensor
from torch.nn import functional as F

pytest.importorskip("diffusers")
pytest.importorskip("peft")
pytestmark = pytest.mark.usefixtures("comfy_host")

MODELS = ("sd15_two", "sdxl", "sd3")
STEPS = 20
RANK, ALPHA = 4, 2.0  # unequal, so that a missing factor shows
CLIP = 0.1  # these models' gradients are about that long: some are cut, some are not
SETTINGS: dict[str, Any] = {
    "steps": STEPS, "rank": RANK, "alpha": ALPHA, "batch_size": 2, "warmup_steps": 2, "learning_rate": 1e-3,
    "weight_decay": 0.1, "scheduler": "cosine", "max_grad_norm": CLIP,
}  # fmt: skip
# With text encoders: a rate of its own for each, and captions that say something.
RATES = {"clip_l": 5e-4, "clip_g": 2e-4}
TEXTS = ("zorp in the sun", "a red hat", "a photo of zorp, on a table, at night", "two cats")
# (scaling_factor, shift_factor) in the published VAEs' configs.
VAE = {"sd15_two": (0.18215, 0.0), "sdxl": (0.13025, 0.0), "sd3": (1.5305, 0.0609)}


def off(ours: Tensor, theirs: Tensor) -> float:
    """How far two tensors are apart, relative to the second."""
    ours, theirs = ours.detach().cpu(), theirs.detach().cpu()
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("name", MODELS)
def test_the_twin_is_the_same_denoiser(name, small_models_folder):
    """Before anything is trained; and fused, an SD3 twin is still itself."""
    patcher = small_models.build(name, small_models_folder)
    twin, ask = diffusers_twin(name, patcher), an_ask(name)
    host = ask_host(patcher, ask)
    assert off(host, ask_twin(twin, ask)) < 1e-4
    fuse_projections(twin)
    assert off(host, ask_twin(twin, ask)) < 1e-4


# --- both sides ------------------------------------------------------------------------------------------


def give_sizes(it: Rig) -> None:
    """Let each picture have a size and crop of its own, in a bucket that is no square, and mirror some."""
    from lora_workbench.training.data.dataset import Placement

    pictures = []
    for n, picture in enumerate(it.dataset.pictures):
        place = Placement(bucket=(192, 128), scaled=(192 + 24 * n, 128 + 8 * n), offset=(7 * n, 3 * n))
        pictures.append(replace(picture, size=(700 + 90 * n, 500 - 60 * n), placement=place, flip=True))
        it.setup.latents.keys[n, True, 0] = f"latent{n}"  # what it shows does not matter here
    it.dataset = replace(it.dataset, pictures=tuple(pictures))


def sizes_of(picture: Any, mirrored: bool) -> Any:
    """What SDXL is told: the size of the file, the corner of the crop in what is seen, the size of the crop."""
    place = picture.placement
    left = place.offset[0]
    right = place.scaled[0] - place.bucket[0] - left
    return picture.size, (right if mirrored else left, place.offset[1]), place.bucket


class Recorder:
    """Notes what is prepared for each micro-step: batch, latents as stored, noise and noise levels."""

    def __init__(self, it: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
        from lora_workbench.training import step

        self.given: list[tuple[Any, Tensor, Tensor, Tensor]] = []
        prepare = step.prepare

        def noting(setup: Any, batch: Any, micro_step: int) -> Any:
            micro = prepare(setup, batch, micro_step)
            raw = [it.setup.latents.load(*view) for view in batch.shown]
            self.given.append((batch, torch.cat(raw), micro.drawn.noise.cpu(), micro.drawn.sigma.cpu()))
            return micro

        monkeypatch.setattr(step, "prepare", noting)


class TextReference:
    """The encoders of a CLIP in transformers' own class, with peft's LoRA on what kohya and diffusers train there."""

    def __init__(self, clip: Any, config: Any) -> None:
        from peft import inject_adapter_in_model
        from transformers import CLIPTextConfig, CLIPTextModelWithProjection

        self.clip, self.encoders = clip, {}
        targets = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
        for name, host in clip.cond_stage_model.named_children():
            layers, width = host.transformer.num_layers, host.transformer.text_projection.in_features
            made = CLIPTextModelWithProjection(
                CLIPTextConfig(
                    num_hidden_layers=layers, hidden_size=width, projection_dim=width, num_attention_heads=width // 64,
                    intermediate_size=256, hidden_act="quick_gelu" if name == "clip_l" else "gelu",
                )
            )  # fmt: skip
            weights = {key: tensor.clone() for key, tensor in host.transformer.state_dict().items()}
            assert not made.load_state_dict(weights, strict=False).missing_keys
            made = inject_adapter_in_model(
                config(r=RANK, lora_alpha=ALPHA, target_modules=targets), made.requires_grad_(False).eval()
            )
            self.encoders[name] = made

    def layer(self, path: str) -> Any:
        """The peft layer of one of ours."""
        name, _, inner = path.partition(".transformer.")
        return self.encoders[name].get_submodule(inner)

    def encode(self, captions: list[str]) -> tuple[Tensor, Tensor | None]:
        """Text and pooled embeddings as diffusers' pipelines of SD 1.5 and SDXL make them."""
        tokens = [self.clip.tokenize(caption) for caption in captions]
        ids = {key: torch.tensor([[one[0] for one in each[key][0]] for each in tokens]) for key in tokens[0]}
        if "clip_g" not in self.encoders:
            return self.encoders["clip_l"].text_model(ids["l"]).last_hidden_state, None
        small, large = (self.encoders[f"clip_{key}"](ids[key], output_hidden_states=True) for key in "lg")
        return torch.cat([small.hidden_states[-2], large.hidden_states[-2]], -1), large.text_embeds


class Reference:
    """An ordinary diffusers training script on the twin of a small model, with peft's LoRA."""

    def __init__(self, name: str, it: Rig, clip: Any = None) -> None:
        from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
        from diffusers.optimization import get_scheduler
        from peft import LoraConfig

        self.name, self.pictures, self.text = name, it.dataset.pictures, None
        self.twin = diffusers_twin(name, it.patcher)
        fuse_projections(self.twin)
        modules = twin_modules(name, it.patcher, [a.path for a in it.network.adapters if a.part_of == "denoiser"])
        self.twin.add_adapter(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(modules.values())))
        self.layers = [self.twin.get_submodule(module) for module in modules.values()]
        self.parameters = [p for p in self.twin.parameters() if p.requires_grad]
        groups = [{"params": self.parameters, "lr": 1e-3}]
        if clip is not None:
            self.text = TextReference(clip, LoraConfig)
            self.layers += [self.text.layer(a.path) for a in it.network.adapters if a.part_of != "denoiser"]
            for encoder, rate in RATES.items():
                if encoder in self.text.encoders:
                    mine = [p for p in self.text.encoders[encoder].parameters() if p.requires_grad]
                    groups.append({"params": mine, "lr": rate})
                    self.parameters = self.parameters + mine
        self.optimizer = torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.1)
        self.schedule = get_scheduler("cosine", self.optimizer, num_warmup_steps=2, num_training_steps=STEPS)
        self.norms: list[float] = []
        if name == "sd3":
            self.noise_schedule: Any = FlowMatchEulerDiscreteScheduler(shift=3.0)
            self.sigmas = self.noise_schedule.sigmas[:-1].flip(0)  # as drawn from: rising, without the end's 0
        else:
            self.noise_schedule = DDPMScheduler(
                beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000
            )
            alphas = self.noise_schedule.alphas_cumprod
            self.sigmas = ((1 - alphas) / alphas).sqrt()

    def copy(self, it: Rig) -> None:
        """Begin with the weights of our network."""
        assert len(self.parameters) == 2 * len(it.network.adapters)
        with torch.no_grad():
            for theirs, ours in zip(self.layers, it.network.adapters, strict=True):
                theirs.lora_A["default"].weight.copy_(ours.down.master)
                theirs.lora_B["default"].weight.copy_(ours.up.master)

    def loss(self, batch: Any, raw: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """The loss of one batch, given what was drawn for it."""
        scale, shift = VAE[self.name]
        latents = (raw - shift) * scale
        place = (self.sigmas - sigma[:, None]).abs().argmin(1)
        # Both sides draw from the same schedule, each by its own table.
        torch.testing.assert_close(self.sigmas[place], sigma, rtol=1e-4, atol=0)
        if self.text:
            text, pooled = self.text.encode([self.pictures[index].caption for index in batch.indices])
        else:
            text, pooled = text_of(self.name, list(batch.indices))
        if self.name == "sd3":
            level = self.sigmas[place].view(-1, 1, 1, 1)
            ask = Ask((1 - level) * latents + level * noise, 1000 * level.flatten(), text, pooled)
            target = noise - latents
        else:
            noisy = self.noise_schedule.add_noise(latents, noise, place)
            shown = [sizes_of(self.pictures[i], m) for i, m in zip(batch.indices, batch.flips, strict=True)]
            ask = Ask(noisy, place, text, pooled, tuple(shown) if self.name == "sdxl" else ())
            target = noise
        return F.mse_loss(ask_twin(self.twin, ask).float(), target.float())

    def step(self, *given: Any) -> float:
        """One optimizer step."""
        loss = self.loss(*given)
        loss.backward()
        self.norms.append(float(torch.nn.utils.clip_grad_norm_(self.parameters, CLIP)))
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        return float(loss.detach())


# --- held against each other -----------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_every_layers_gradient(name, checkpointing, small_models_folder, tmp_path, monkeypatch):
    """Of LoRAs that already do something, or those of `down` would all be zero."""
    settings = SETTINGS | {"gradient_checkpointing": checkpointing}
    with rig(name, small_models_folder, tmp_path, **settings) as it:
        give_sizes(it)
        with torch.no_grad():
            for n, layer in enumerate(it.network.adapters):
                up = layer.up.master
                up.copy_(torch.randn(up.shape, generator=torch.Generator().manual_seed(n)) * 0.05)
        reference, recorder = Reference(name, it), Recorder(it, monkeypatch)
        reference.copy(it)
        ours = float(it.step().losses.mean())
        (given,) = recorder.given
        loss = reference.loss(*given)
        loss.backward()
        assert ours == pytest.approx(float(loss.detach()), rel=1e-4)
        for layer, theirs in zip(it.network.adapters, reference.layers, strict=True):
            assert off(layer.down.total, theirs.lora_A["default"].weight.grad) < 1e-3, layer.path
            assert off(layer.up.total, theirs.lora_B["default"].weight.grad) < 1e-3, layer.path


# The first two are trained with their text encoders below.
@pytest.mark.parametrize("name", long_but({MODELS[2]}, MODELS))
def test_twenty_steps(name, small_models_folder, tmp_path, monkeypatch):
    """From a fresh LoRA, with warm-up, cosine, weight decay and clipping: each loss, and every weight at the end."""
    with rig(name, small_models_folder, tmp_path, **SETTINGS) as it:
        give_sizes(it)
        reference, recorder = Reference(name, it), Recorder(it, monkeypatch)
        reference.copy(it)
        first = [layer.down.master.detach().cpu().clone() for layer in it.network.adapters]
        losses = it.train().losses
        theirs = [reference.step(*given) for given in recorder.given]
        assert len(losses) == STEPS
        assert losses == pytest.approx(theirs, rel=1e-4)
        assert min(reference.norms) < CLIP < max(reference.norms)
        for layer, other, start in zip(it.network.adapters, reference.layers, first, strict=True):
            # Held against how far they have moved, which is the smaller number.
            assert off(layer.down.master.cpu() - start, other.lora_A["default"].weight - start) < 1e-3, layer.path
            assert off(layer.up.master, other.lora_B["default"].weight) < 1e-3, layer.path


@pytest.mark.long
@pytest.mark.parametrize("name", ["sd15_two", "sdxl"])
def test_twenty_steps_with_text_encoders(name, small_models_folder, tmp_path, monkeypatch):
    """The model and all its text encoders: each loss, and every weight at the end."""
    clip = small_clip("sdxl" if name == "sdxl" else "sd15")
    text = {"clip_l": True, "clip_l_rate": RATES["clip_l"]}
    if name == "sdxl":
        text |= {"clip_g": True, "clip_g_rate": RATES["clip_g"]}
    with rig(name, small_models_folder, tmp_path, clip=clip, texts=TEXTS, **SETTINGS | text) as it:
        give_sizes(it)
        reference, recorder = Reference(name, it, clip), Recorder(it, monkeypatch)
        reference.copy(it)
        first = [layer.down.master.detach().cpu().clone() for layer in it.network.adapters]
        losses = it.train().losses
        theirs = [reference.step(*given) for given in recorder.given]
        assert losses == pytest.approx(theirs, rel=1e-4)
        for layer, other, start in zip(it.network.adapters, reference.layers, first, strict=True):
            down, up = layer.down.master.cpu() - start, layer.up.master
            if name == "sdxl" and ".layers.2." in layer.path and layer.part_of == "clip_l":
                assert not up.any(), "SDXL reads CLIP-L before its last layer"
                continue
            assert off(down, other.lora_A["default"].weight - start) < 1e-3, layer.path
            assert off(up, other.lora_B["default"].weight) < 1e-3, layer.path
