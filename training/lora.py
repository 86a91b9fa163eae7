"""What a LORA_MODEL is: ComfyUI's own dict of tensors, plus its metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .events import counted, lasted


@dataclass(frozen=True)
class DiffusersTarget:
    """The diffusers module that holds rows `start` to `start + rows` of one of our layers' outputs.

    ComfyUI fuses layers that diffusers splits, such as q, k and v of a joint attention. One layer here can be several
    there, each with its own rows of `lora_up` and the same `lora_down`. `rows` None means the whole layer.
    """

    module: str
    start: int = 0
    rows: int | None = None


@dataclass(frozen=True)
class LayerNames:
    """Every name of one trained layer.

    Attributes:
        module: Path inside the host's model, such as `diffusion_model.joint_blocks.0.x_block.attn.qkv`.
        kohya: Prefix of its three tensors in a kohya file, such as `lora_unet_joint_blocks_0_x_block_attn_qkv`.
        diffusers: The diffusers modules it corresponds to; empty when the host knows no diffusers names.
            Each starts with the component: `unet.…` or `transformer.…`.
    """

    module: str
    kohya: str
    diffusers: tuple[DiffusersTarget, ...] = ()


class LoraModel(dict[str, torch.Tensor]):
    """Tensors by kohya key (`<layer>.lora_down.weight`, `.lora_up.weight`, `.alpha`), fp32, on the CPU.

    ComfyUI's own LoraModelLoader, SaveLoRA and model patches treat it as a plain dict.

    Attributes:
        layers: Names of each trained layer, by kohya prefix. Empty when the tensors came from elsewhere.
        metadata: The safetensors metadata written with it; every value is a string.
        file: The file that it was loaded from; empty when it was not.
        key_map: The host's map from LoRA names to weights of the trained model, restricted to the names in use.
            The read-back check of Save LoRA loads against it.
    """

    def __init__(
        self,
        tensors: dict[str, torch.Tensor],
        layers: dict[str, LayerNames] | None = None,
        metadata: dict[str, str] | None = None,
        key_map: dict[str, object] | None = None,
        file: str = "",
    ) -> None:
        super().__init__(tensors)
        self.layers = dict(layers or {})
        self.metadata = dict(metadata or {})
        self.key_map = dict(key_map or {})
        self.file = file

    @property
    def run_name(self) -> str:
        """Name of the run it comes from; empty when unknown."""
        return self.metadata.get("ss_output_name", "")

    @property
    def origin(self) -> str:
        """The run and the seed it comes from, in words; empty when unknown."""
        return f"run {self.run_name}, seed {self.metadata.get('ss_seed')}" if self.run_name else ""


def name_of(lora: Mapping[str, torch.Tensor]) -> str:
    """What a LORA_MODEL is called: the file or the run that it comes from."""
    known = lora.file or lora.run_name if isinstance(lora, LoraModel) else ""
    return known or "a LORA_MODEL without a name"


@dataclass(frozen=True)
class RunSummary:
    """What a RUN socket carries: where the run is on disk and how it went.

    Attributes:
        name: The run's name; its folder is `output/lora_workbench/<name>/`.
        folder: The path of that folder.
        losses: Mean loss of each optimizer step.
        epoch_losses: Mean loss of each finished epoch.
        concept_losses: Mean loss of each finished epoch for each concept, by its folder's name.
        steps: Optimizer steps done.
        epochs: Epochs finished.
        images: Pictures seen, counting repeats.
        checkpoints: Files saved during the run, oldest first.
        outcome: `finished`, `cancelled` or `failed`.
        seconds: Wall-clock time of the training loop.
        encoded_latents: Latents that had to be encoded (0 when all were cached).
        encoded_captions: Captions that had to be encoded.
        skipped: One sentence for each picture that was left out.
        not_saved: One sentence for each file of the run that could not be written.
        seed: Seed of its draws.
        hints: One sentence for each setting that probably does not do what was meant.
        memory: How the run fitted into memory.
        id: What identifies the run, whatever its folder is called.
        samples: Pictures that it made of itself, oldest first.
        held_out: Each measurement of the held-out pictures: its `step`, their mean `loss`, the `base` model's, and both
            by concept in `concepts`.
    """

    name: str
    folder: str
    losses: tuple[float, ...] = ()
    epoch_losses: tuple[float, ...] = ()
    concept_losses: dict[str, tuple[float, ...]] = field(default_factory=dict)
    steps: int = 0
    epochs: int = 0
    images: int = 0
    checkpoints: tuple[str, ...] = field(default=())
    outcome: str = "finished"
    seconds: float = 0.0
    encoded_latents: int = 0
    encoded_captions: int = 0
    skipped: tuple[str, ...] = field(default=())
    not_saved: tuple[str, ...] = field(default=())
    seed: int | None = None
    hints: tuple[str, ...] = field(default=())
    memory: str = ""
    id: str = ""
    samples: tuple[str, ...] = field(default=())
    held_out: tuple[dict[str, Any], ...] = field(default=())

    def __str__(self) -> str:
        """Say how the run went in two sentences, as ComfyUI's Preview Any prints it."""
        went = f"{self.name}: {self.outcome} after {counted(self.steps, 'step')} in {lasted(self.seconds)}"
        loss = f", loss {self._recent_loss:.4f} (least {min(self.losses):.4f})" if self.losses else ""
        return f"{went}{loss}. Folder: {self.place}"

    @property
    def place(self) -> str:
        """The run's folder below ComfyUI's output folder."""
        return f"{Path(self.folder).parent.name}/{Path(self.folder).name}"

    @property
    def _recent_loss(self) -> float:
        recent = self.losses[-100:]
        return sum(recent) / len(recent)

    def result(self) -> dict[str, Any]:
        """The run in a few values, for programs that read ComfyUI's history.

        Paths are below ComfyUI's output folder, as its route `/view` takes them: the history is open to every computer
        that reaches the server, and the folder may lie elsewhere for them. Where something is missing, it is None.
        """
        losses = self.losses or (None,)
        file = Path(self.folder) / f"{Path(self.folder).name}.safetensors"
        return {
            "id": self.id,
            "name": self.name,
            "outcome": self.outcome,
            "steps": self.steps,
            "epochs": self.epochs,
            "first_loss": losses[0],
            "last_loss": losses[-1],
            "least_loss": min(self.losses, default=None),
            "seconds": round(self.seconds, 1),
            "seed": self.seed,
            "folder": self.place,
            "file": f"{self.place}/{file.name}" if file.is_file() else None,
        }

    def describe(self) -> str:
        """Describe how the run went, its folder below ComfyUI's output folder, and what went wrong, a line each."""
        lines = [f"{self.outcome}: {counted(self.steps, 'step')}"]
        if self.losses:
            lines[0] += f", loss {self._recent_loss:.4f}"
        if len(self.concept_losses) > 1:  # shows which concept is learned and which lags behind
            parts = (f"{name} {losses[-1]:.4f}" for name, losses in self.concept_losses.items())
            lines.append(f"loss of the last epoch: {', '.join(parts)}")
        lines.append(f"run: {self.place}" if self.seed is None else f"run: {self.place}, seed {self.seed}")
        if self.skipped:
            more = f" … and {len(self.skipped) - 3} more" if len(self.skipped) > 3 else ""
            lines.append(f"left out: {' '.join(self.skipped[:3])}{more}")
        lines += [*self.not_saved[:1], *self.hints]
        return "\n".join(lines)
