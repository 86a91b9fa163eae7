"""What a step benchmark measures: the frozen model alone, our own trainer, ComfyUI's TrainLoraNode.

Each case takes a loaded MODEL, a job and a watch. The watch sees the moment before the first step and the end of each.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .models import SHAPES, Shape, conditioning, latent, make_sd15_file, random_model

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Job:
    """What every case of a comparison trains.

    Attributes:
        model: A key of `SHAPES`.
        side: Pixels of the picture's side.
        precision: `fp32` or `bf16`.
        steps: Number of steps.
        batch: Pictures of a step.
        checkpointing: Whether blocks are recomputed in backward.
        copies: Whether copies of the weights in the compute dtype may be kept.
    """

    model: str
    side: int
    precision: str
    steps: int
    batch: int = 1
    checkpointing: bool = False
    copies: bool = True

    @property
    def rung(self) -> Any:
        """How our trainer fits it into memory."""
        from lora_workbench.training.rung import Rung

        return Rung(copies=self.copies, checkpointing=self.checkpointing)

    @property
    def shape(self) -> Shape:
        """The model's sizes."""
        return SHAPES[self.model]


class Watch(Protocol):
    """Sees the steps of a case."""

    def running(self) -> AbstractContextManager[Any]:
        """Everything is ready: the steps are inside this block."""

    def step(self) -> None:
        """A step has ended."""


Case = Callable[[Any, Job, Watch], None]


class NotHere(RuntimeError):
    """A case that this ComfyUI, machine or version of the pack cannot run."""


def device() -> torch.device:
    """Where the cases run."""
    import comfy.model_management

    return comfy.model_management.get_torch_device()


def load_file(file: Path, *, trainer: bool) -> Any:
    """Load the SD1.5 file with the host's own loader.

    Args:
        file: Written first if it does not exist.
        trainer: Whether a trainer gets it. A server loads in inference mode; the floor needs plain tensors.
    """
    import comfy.model_management
    import comfy.sd
    import torch

    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        make_sd15_file(file)
    with torch.inference_mode(trainer):
        patcher = comfy.sd.load_diffusion_model(str(file))
        if patcher.load_device.type != "cpu" and not trainer:  # the host would compute in half precision here
            patcher.set_model_compute_dtype(torch.float32)
        comfy.model_management.load_models_gpu([patcher])  # its weights must not count as growth
    return patcher


def load_random(name: str, dtype: torch.dtype, *, trainer: bool) -> Any:
    """Make a model with random weights on the device."""
    import torch

    with torch.inference_mode(trainer):
        return random_model(SHAPES[name], dtype, device())


def cast_once(patcher: Any, dtype: torch.dtype) -> Any:
    """Give the whole model one dtype, which its layers then compute in."""
    patcher.model.diffusion_model.to(dtype)
    patcher.model.manual_cast_dtype = dtype
    return patcher


# -- the frozen model ----------------------------------------------------------------------------


def frozen_pass(patcher: Any, job: Job) -> tuple[Callable[[], None], torch.Tensor]:
    """One forward and backward of the frozen model to its input, and that input.

    Under autocast if the model is fp32 and the job is not.
    """
    import comfy.ldm.modules.attention as attention
    import torch

    model, shape, where = patcher.model.requires_grad_(False), job.shape, patcher.load_device
    noised = latent(shape, job.side).to(where).requires_grad_(True)
    at = torch.tensor([shape.sigma], device=where)
    told = conditions(model, job, where)
    options = {"optimized_attention_override": lambda _f, *a, **k: attention.attention_pytorch(*a, **k)}
    weights = next(model.diffusion_model.parameters()).dtype
    mixed = job.precision == "bf16" and weights == torch.float32 and model.manual_cast_dtype is None

    def once() -> None:
        with torch.autocast(where.type, dtype=torch.bfloat16, enabled=mixed):
            out = model.apply_model(noised, at, transformer_options=options, **told)
            out.float().square().mean().backward()

    return once, noised


def conditions(model: Any, job: Job, where: torch.device) -> dict[str, Any]:
    """The model's own inputs for one picture."""
    text, options = conditioning(job.shape)[0]
    values = {
        **{name: value.to(where) for name, value in options.items()}, "cross_attn": text.to(where),
        "noise": latent(job.shape, job.side).to(where), "device": where, "width": job.side, "height": job.side,
    }  # fmt: skip
    made = model.extra_conds(**values)
    return {name: value.process_cond(batch_size=1, area=None).concat([]) for name, value in made.items()}


def floor(patcher: Any, job: Job, watch: Watch) -> None:
    """Run the frozen model alone: no trainer of adapters can be faster."""
    once, noised = frozen_pass(patcher, job)
    with watch.running():
        for _ in range(job.steps):
            noised.grad = None
            once()
            watch.step()


def floor_in_graph(patcher: Any, job: Job, watch: Watch) -> None:
    """Run the frozen model alone, captured in a CUDA graph: as `floor`, without the time that Python takes."""
    import torch

    if not torch.cuda.is_available():
        raise NotHere("a CUDA graph needs an NVIDIA GPU")
    once, noised = frozen_pass(patcher, job)
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            noised.grad = None
            once()
    torch.cuda.current_stream().wait_stream(aside)
    noised.grad = None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        once()
    with watch.running():
        for _ in range(job.steps):
            graph.replay()
            watch.step()


# -- the trainers --------------------------------------------------------------------------------


def ours(patcher: Any, job: Job, watch: Watch) -> None:
    """Run our own loop on a cached latent and caption."""
    from lora_workbench.training.events import SilentSink
    from lora_workbench.training.host.model import HostModel
    from lora_workbench.training.loop import train
    from lora_workbench.training.preflight import prepared

    model = HostModel(patcher)
    plan, *stores = our_inputs(job)
    with prepared(model, plan, *stores, only=job.rung) as ready, watch.running():
        train(ready.setup, ready.run, SilentSink(), lambda *_: watch.step())


def our_inputs(job: Job) -> tuple[Any, Any, Any]:
    """A plan, latents and captions for a job."""
    import folder_paths
    from lora_workbench.training.cache.captions import CaptionStore
    from lora_workbench.training.cache.latents import LatentStore, cache_folders
    from lora_workbench.training.config import TrainConfig
    from lora_workbench.training.data.dataset import Dataset, Picture, Placement
    from lora_workbench.training.host.text import HostText
    from lora_workbench.training.plan import Plan

    latents, captions = cache_folders(Path(folder_paths.get_temp_directory()))
    latents.put("a", {"latent": latent(job.shape, job.side)})
    captions.put("b", *HostText.pack(conditioning(job.shape)))
    size = (job.side, job.side)
    picture = Picture(Path("a.png"), size, "a", repeats=job.batch, placement=Placement(size, size, (0, 0)))
    dataset = Dataset((picture,), bucket_step=64)
    config = TrainConfig(
        steps=job.steps, rank=16, batch_size=job.batch, precision=job.precision,
        gradient_checkpointing=job.checkpointing,
    )  # fmt: skip
    texts = CaptionStore(captions, {"a": "b"}, {}, 0, HostText.unpack)
    return Plan(dataset, config), LatentStore(latents, dataset, {(0, False, 0): "a"}, 0), texts


def host(patcher: Any, job: Job, watch: Watch, **more: Any) -> None:
    """Run ComfyUI's own TrainLoraNode on the same job, called as its executor calls it."""
    import comfy.utils
    import torch

    from .native import native_lora

    comfy.utils.set_progress_bar_global_hook(lambda *_, **__: watch.step())
    with torch.inference_mode():
        # Two pictures: with one the node of 0.3.75 stops with an error.
        latents = [{"samples": latent(job.shape, job.side, seed)} for seed in (0, 1)]
        positive = [conditioning(job.shape) for _ in latents]
        with watch.running():
            native_lora(
                patcher, latents, positive, batch_size=job.batch, steps=job.steps, rank=16,
                training_dtype=job.precision, lora_dtype="fp32", gradient_checkpointing=job.checkpointing, **more,
            )  # fmt: skip


def host_bypass(patcher: Any, job: Job, watch: Watch) -> None:
    """Run TrainLoraNode in its bypass mode, which newer hosts have."""
    from .machine import host_version

    if host_version() == "0.3.75":
        raise NotHere("bypass mode is newer than ComfyUI 0.3.75")
    host(patcher, job, watch, bypass_mode=True)
