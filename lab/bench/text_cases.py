"""A step of SD 1.5 with its text encoder: the frozen two alone, and our trainer with both trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from .cases import Job, Watch, our_inputs
from .models import latent

CAPTION = "a photo of zorp in the sun"


def random_clip(*, trainer: bool) -> Any:
    """A CLIP-L of full size with random weights.

    Args:
        trainer: Whether a trainer gets it. A server makes it in inference mode; the floor needs plain tensors.
    """
    import comfy.sd
    import comfy.sd1_clip
    import torch

    target = SimpleNamespace(params={}, clip=comfy.sd1_clip.SD1ClipModel, tokenizer=comfy.sd1_clip.SD1Tokenizer)
    with torch.inference_mode(trainer):
        clip = comfy.sd.CLIP(target, model_options={"dtype": torch.float32})
        draws = torch.Generator().manual_seed(3)
        for name, tensor in clip.cond_stage_model.state_dict().items():
            if "norm" in name:
                tensor.fill_(1.0 if name.endswith("weight") else 0.0)
            elif tensor.is_floating_point() and tensor.ndim:
                tensor.copy_(torch.randn(tensor.shape, generator=draws) * 0.02)
    return clip


def floor(patcher: Any, job: Job, watch: Watch) -> None:
    """Run the frozen model and its frozen encoder, forward and backward to their inputs."""
    import comfy.ldm.modules.attention as attention

    clip = random_clip(trainer=False)
    encoder = clip.cond_stage_model.requires_grad_(False)
    _copy_norm_inputs(encoder)
    model, where = patcher.model.requires_grad_(False), patcher.load_device
    table = encoder.clip_l.transformer.get_input_embeddings()
    table.register_forward_hook(lambda _module, _args, out: out.requires_grad_(True))
    noised = latent(job.shape, job.side).to(where).requires_grad_(True)
    options = {"optimized_attention_override": lambda _f, *a, **k: attention.attention_pytorch(*a, **k)}
    tokens, sigma = clip.tokenize(CAPTION), noised.new_tensor([job.shape.sigma])

    def once() -> None:
        text = encoder.encode_token_weights(tokens)[0].to(where)
        out = model.apply_model(noised, sigma, c_crossattn=text, transformer_options=options)
        out.float().square().mean().backward()

    with watch.running():
        for _ in range(job.steps):
            noised.grad = None
            once()
            watch.step()


def _copy_norm_inputs(encoder: Any) -> None:
    """Give norms a copy of their input: the host's encoder adds in place to what they save."""

    def copying(forward: Callable[..., Any]) -> Callable[..., Any]:
        return lambda x, *args, **keywords: forward(x.clone(), *args, **keywords)

    for module in encoder.modules():
        if "Norm" in type(module).__name__:
            module.forward = copying(module.forward)


def ours(patcher: Any, job: Job, watch: Watch) -> None:
    """Run our own loop with the text encoder trained."""
    from lora_workbench.training.events import SilentSink
    from lora_workbench.training.host.model import HostModel
    from lora_workbench.training.host.text_encoders import trained_text
    from lora_workbench.training.loop import train
    from lora_workbench.training.plan import Plan
    from lora_workbench.training.preflight import prepared

    plan, latents, captions = our_inputs(job)
    picture = replace(plan.dataset.pictures[0], caption=CAPTION)
    plan = Plan(replace(plan.dataset, pictures=(picture,)), replace(plan.config, clip_l=True))
    clip = random_clip(trainer=True)
    model = HostModel(patcher, trained_text(clip, plan.config.trained_encoders, patcher.load_device))
    with prepared(model, plan, latents, captions, only=job.rung) as ready, watch.running():
        train(ready.setup, ready.run, SilentSink(), lambda *_: watch.step())
