"""A training run on a small model, with latents and conditioning made up: the engine without CLIP and VAE."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from . import small_models


@dataclass
class Rig:
    """A run ready to train, and the model under it."""

    patcher: Any
    model: Any
    ready: Any
    sink: Any
    after_step: Callable[..., None] | None

    @property
    def setup(self) -> Any:
        """The parts of a step."""
        return self.ready.setup

    @property
    def network(self) -> Any:
        """The LoRA."""
        return self.setup.network

    @property
    def run(self) -> Any:
        """The run."""
        return self.ready.run

    @property
    def made(self) -> Any:
        """The model made differentiable."""
        return self.ready.made

    def left(self) -> AbstractContextManager[None]:
        """Give the model back inside the block."""
        return self.ready.left()

    @property
    def dataset(self) -> Any:
        """What is trained on."""
        return self.setup.plan.dataset

    @dataset.setter
    def dataset(self, dataset: Any) -> None:
        self.setup.plan.dataset = dataset

    def train(self) -> Any:
        """Train to the end, or from where the run stands."""
        from lora_workbench.training.loop import train

        return train(self.setup, self.run, self.sink, self.after_step, self.ready.step_down)

    def steps(self, epoch: int = 0) -> list[list[Any]]:
        """The optimizer steps of an epoch, each a list of batches."""
        return self.setup.plan.steps(epoch)

    def optimizer_step(self) -> None:
        """Train the first optimizer step of the epoch."""
        from lora_workbench.training import loop

        loop.optimizer_step(self.setup, self.run, self.steps()[0], self.sink)

    def prepare(self, batch: Any = None) -> Any:
        """The first batch, or another, with what is drawn for it at the run's micro-step."""
        from lora_workbench.training.step import prepare

        return prepare(self.setup, batch or self.steps()[0][0], self.run.micro_step)

    def conditions(self, micro: Any) -> list[Any]:
        """The model's inputs for each picture of a batch."""
        from lora_workbench.training.step import conditions

        return conditions(self.setup, micro)

    def step(self, batch: Any = None, micro: Any = None) -> Any:
        """Run the first batch, or another, forward and backward; return its `BatchLosses`.

        Args:
            batch: Pictures of one bucket.
            micro: What to use in place of what would be prepared for it.
        """
        from lora_workbench.training import step

        self.network.flat.refresh()  # a test may have set weights
        with mock.patch.object(step, "prepare", (lambda *_: micro) if micro else step.prepare):
            return step.training_step(self.setup, batch or self.steps()[0][0], self.run.micro_step)


@contextmanager
def rig(
    name: str,
    models: Path,
    work: Path,
    *,
    pictures: int = 4,
    side: int = 128,
    targets: Sequence[str] = (),
    sink: Any = None,
    after_step: Callable[..., None] | None = None,
    patcher: Any = None,
    only: Any = None,
    clip: Any = None,
    texts: Sequence[str] = (),
    start_from: Any = None,
    **settings: Any,
) -> Iterator[Rig]:
    """Set a run up as a session does, differentiable model included; everything is undone at the end.

    Args:
        name: Which small model.
        models: Folder of model files.
        work: Folder for the caches.
        pictures: How many pictures the made-up dataset has.
        side: Their side in pixels, 8 per latent cell.
        targets: Of each picture, where they are not all `picture`.
        sink: Progress sink.
        after_step: Passed to the loop.
        patcher: A MODEL to use instead of a freshly built one.
        only: The one rung to stand on.
        clip: A CLIP whose encoders are trained by the settings, and which encodes `texts`.
        texts: The captions, where `clip` is given.
        start_from: A LORA_MODEL to train on.
        settings: Fields of TrainConfig.
    """
    from lora_workbench.training.cache.captions import CaptionStore
    from lora_workbench.training.cache.latents import LatentStore, cache_folders
    from lora_workbench.training.config import TrainConfig
    from lora_workbench.training.data.dataset import Dataset, Picture, Placement
    from lora_workbench.training.encode import asked_captions, encode_captions
    from lora_workbench.training.events import SilentSink
    from lora_workbench.training.host.model import HostModel
    from lora_workbench.training.host.text import HostText
    from lora_workbench.training.host.text_encoders import trained_text
    from lora_workbench.training.plan import Plan
    from lora_workbench.training.preflight import prepared, trained_layers

    patcher = patcher or small_models.build(name, models)
    model = HostModel(patcher)
    latents, captions = cache_folders(work)
    shape = small_models.latent_shape(name, side // 8, side // 8)
    for n in range(pictures):
        source = torch.Generator().manual_seed(100 + n)
        latents.put(f"latent{n}", {"latent": torch.randn(shape, generator=source)})
        captions.put(f"caption{n}", *HostText.pack(small_models.conditioning(name, seed=n)))  # type: ignore[misc]
    place = Placement((side, side), (side, side), (0, 0))
    dataset = Dataset(
        tuple(
            Picture(
                Path(f"{n}.png"), (side + n, side), texts[n] if texts else f"c{n}", placement=place,
                preserves_prior=target == "model",
            )
            for n, target in enumerate(targets or ["picture"] * pictures)
        ),  # fmt: skip
        bucket_step=64,
        resolution=side,
    )
    config = TrainConfig(**{"precision": "fp32", "learning_rate": 1e-3, "rank": 4, "batch_size": 2, **settings})
    with torch.inference_mode():
        keys = {(n, False, 0): f"latent{n}" for n in range(pictures)}
        known = {f"c{n}": f"caption{n}" for n in range(pictures)}
        encoded = CaptionStore(captions, known, {}, 0, HostText.unpack)
        if clip:
            model.text = trained_text(clip, config.trained_encoders, model.device)
            encoded = encode_captions(model, asked_captions(model, clip, list(texts)), captions, SilentSink())
        stores = LatentStore(latents, dataset, keys, 0), encoded
        layers = trained_layers(model, config, start_from, clip)
        with prepared(model, Plan(dataset, config), *stores, only=only, sink=sink, layers=layers) as ready:
            yield Rig(patcher, model, ready, sink or SilentSink(), after_step)


def trained_tensors(network: Any) -> list[torch.Tensor]:
    """Every trained tensor, layer by layer, as it is in the run's buffers."""
    return [view.master for view in network.flat.views]


def trained(name: str, models: Path, work: Path, **settings: Any) -> list[torch.Tensor]:
    """Train and return every tensor of the LoRA."""
    with rig(name, models, work, **settings) as it:
        it.train()
        return [tensor.detach().clone() for tensor in trained_tensors(it.network)]


def sample(patcher: Any, name: str, side: int = 128, steps: int = 2) -> torch.Tensor:
    """Sample two steps with the host's own sampler, as KSampler does."""
    import comfy.sample

    shape = small_models.latent_shape(name, side // 8, side // 8)
    with torch.inference_mode():
        latent = torch.zeros(shape)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(7))
        positive, negative = (small_models.conditioning(name, seed=s) for s in (1, 2))
        return comfy.sample.sample(
            patcher, noise, steps, 2.0, "euler", "normal", positive, negative, latent, seed=7
        ).clone()


class Snapshot:
    """Everything of a MODEL that a run must leave as it was."""

    def __init__(self, patcher: Any) -> None:
        import comfy.ldm.modules.attention as attention
        import comfy.model_management as management

        model = patcher.model
        held = dict(model.named_parameters()) | dict(model.named_buffers())
        own = {name: held.get(name) if tensor.is_meta else tensor for name, tensor in model.state_dict().items()}
        self.tensors = {name: _copied(tensor) for name, tensor in own.items() if tensor is not None}
        self.objects = {name: id(tensor) for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
        self.modules = [
            (name, id(module), module.training, sorted(vars(module))) for name, module in model.named_modules()
        ]
        self.grads = {name: (p.requires_grad, p.grad) for name, p in model.named_parameters()}
        self.globals = {
            "attention": attention.optimized_attention,
            "in_training": getattr(management, "in_training", None),
            "cast": model.manual_cast_dtype,
            "grad": torch.is_grad_enabled(),
            "inference": torch.is_inference_mode_enabled(),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "patches": patcher.patches_uuid,
            "kernels": _fused_kernels(),
            "options": repr(patcher.model_options),
        }

    def differences(self, later: Snapshot) -> list[str]:
        """Name everything that is no longer as it was."""
        found = [name for name, tensor in self.tensors.items() if not torch.equal(tensor, later.tensors[name])]
        for part in ("objects", "modules", "grads", "globals"):
            if getattr(self, part) != getattr(later, part):
                found.append(part)
        return found


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of a tensor, or of the bytes of a GGUF layer's."""
    if not hasattr(tensor, "tensor_type"):
        return tensor.detach().clone()
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.detach().as_subclass(torch.Tensor).clone()


def _fused_kernels() -> dict[str, int]:
    """The rope kernels of newer hosts, which a run swaps for differentiable ones; by identity."""
    try:
        from comfy import quant_ops
    except ImportError:
        return {}
    kernels = getattr(quant_ops, "ck", None)
    return {name: id(getattr(kernels, name)) for name in dir(kernels) if "rope" in name} if kernels else {}
