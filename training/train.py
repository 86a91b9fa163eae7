"""One training run from sockets to LORA_MODEL: checks, caches, the loop, saving, and giving the model back."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from .adapters.network import LoraNetwork, parameters_snapshot
from .cache.captions import CaptionStore, store_captions
from .cache.latents import LatentStore, cache_folders, store_latents
from .config import TrainConfig
from .data.dataset import Dataset
from .disk import safe_name
from .errors import UserError
from .events import Cancelled, Sink
from .files.metadata import RunFacts, build_metadata
from .host.frozen import Differentiable, differentiable
from .host.keys import layer_names, restricted_key_map
from .host.model import HostModel, comes_from_the_model
from .host.progress import host_interrupt, is_host_interrupt
from .host.text import HostText, pack, unpack
from .host.vae import HostVAE
from .loop import Trainer
from .lora import LayerNames, LoraModel, RunSummary
from .objective import timesteps_in_force
from .optimizers import SOURCES, optimizer_class, scheduler_in_force, warmup_in_force, weights_to_keep
from .plan import Plan
from .run.folder import RunFolder
from .run.state import Diverged, Run

log = logging.getLogger(__name__)

PREFIX = "diffusion_model."
T = TypeVar("T")


@dataclass(frozen=True)
class Result:
    """What a run hands on: the LoRA and the story of the run."""

    lora: LoraModel
    summary: RunSummary


def train_lora(
    patcher: Any,
    clip: Any,
    vae: Any,
    dataset: Dataset,
    config: TrainConfig,
    *,
    root: Path,
    cache_root: Path,
    sink: Sink,
) -> Result:
    """Train a LoRA on a loaded MODEL and give the model back untouched.

    Args:
        patcher: MODEL socket.
        clip: CLIP socket.
        vae: VAE socket.
        dataset: A bucketed dataset.
        config: The run's settings.
        root: Folder in which the run's folder is made.
        cache_root: Where latents and captions are kept between runs.
        sink: Is told of the progress and asked for a cancel.

    Raises:
        UserError: Something in the inputs does not fit; nothing was written.
        Diverged: The loss left the finite numbers; the last good weights are in the run's folder.
    """
    return Session(patcher, clip, vae, dataset, config, root, cache_root, sink).execute()


class Session:
    """The parts of one run and the order they are used in."""

    def __init__(
        self,
        patcher: Any,
        clip: Any,
        vae: Any,
        dataset: Dataset,
        config: TrainConfig,
        root: Path,
        cache_root: Path,
        sink: Sink,
    ) -> None:
        self.config, self.sink, self.root, self.cache_root = config, sink, root, cache_root
        self.model, self.dataset = HostModel(patcher), dataset
        self.clip, self.vae = clip, vae
        self.session_id = random.SystemRandom().getrandbits(32)
        self.checkpoints: list[str] = []
        self.not_saved: list[str] = []
        self.started_at = time.time()

    def execute(self) -> Result:
        """Run it all."""
        self._check()
        try:
            latents, captions = self._encode()
        except BaseException as error:
            if isinstance(error, Cancelled) or is_host_interrupt(error):
                # Nothing is trained yet, so there is nothing to hand on.
                self.sink.take_cancel()
                raise host_interrupt() from error
            raise
        self.dataset = latents.dataset
        self._load(latents)
        # The host runs nodes in inference mode; what is made there cannot be trained.
        with torch.inference_mode(False), torch.enable_grad():
            return self._train(latents, captions)

    # -- before ------------------------------------------------------------------------------

    def _check(self) -> None:
        """Refuse what cannot work, before any work is done."""
        safe_name(self.config.name)
        optimizer_class(self.config.optimizer)
        if not self.dataset.pictures:
            raise UserError("The dataset is empty: give LoadDataset a folder with pictures.")
        if not self.dataset.is_bucketed:
            raise UserError("The dataset has no buckets yet: put a BucketImages node between it and LoRATrainer.")
        for name, socket in (("CLIP", self.clip), ("VAE", self.vae)):
            if socket is None:
                raise UserError(f"The {name} input is empty: this loader gave none. Connect one that fits the MODEL.")
        LoraNetwork.create(
            dict(list(self.model.targets().items())[:1]), rank=1, alpha=1.0, dropout=0.0, seed=0,
            device=torch.device("cpu"),
        )
        step = int(self.vae.spacial_compression_encode())
        for width, height in self.dataset.buckets():
            if width % step or height % step:
                raise UserError(
                    f"The bucket {width}×{height} is no multiple of {step} pixels, which this VAE needs: set the step "
                    f"of BucketImages to a multiple of {step}."
                )
        channels, wanted = int(self.vae.latent_channels), self.model.latent_channels
        if channels != wanted:
            raise UserError(
                f"This VAE makes latents of {channels} channels and the MODEL takes {wanted}: connect the VAE that "
                "belongs to the MODEL."
            )

    def _encode(self) -> tuple[LatentStore, CaptionStore]:
        latent_cache, caption_cache = cache_folders(self.cache_root)
        latents = store_latents(self.dataset, HostVAE(self.vae), latent_cache, self.sink)
        captions = store_captions(
            Plan(latents.dataset, self.config).captions(), HostText(self.clip), caption_cache, self.sink, pack, unpack
        )
        for sentence in latents.dataset.skipped[len(self.dataset.skipped) :]:
            log.warning("LoRA Workbench: left out: %s", sentence)
        log.info("LoRA Workbench: encoded %d pictures and %d captions anew", latents.encoded, captions.encoded)
        return latents, captions

    def _load(self, latents: LatentStore) -> None:
        largest = max(latents.dataset.buckets(), key=lambda side: side[0] * side[1])
        index = next(
            i for i, p in enumerate(latents.dataset.pictures) if p.placement and p.placement.bucket == largest
        )
        shape = tuple(latents.load(index, False).shape)
        if len(shape) - 2 != self.model.latent_dimensions:
            raise UserError(
                f"This VAE makes latents of {len(shape) - 2} dimensions and the MODEL takes "
                f"{self.model.latent_dimensions}: connect the VAE that belongs to the MODEL."
            )
        self.model.load((self.config.batch_size, *shape[1:]), self.config.gradient_checkpointing)

    # -- the run -----------------------------------------------------------------------------

    def _train(self, latents: LatentStore, captions: CaptionStore) -> Result:
        config, model = self.config, self.model
        self.precision = compute_precision(config.precision, model.device)
        network = LoraNetwork.create(
            model.targets(), rank=config.rank, alpha=config.effective_alpha, dropout=config.dropout,
            seed=config.seed, device=model.device,
        )
        trainer = Trainer(
            model, latents, captions, config, network, self.sink,
            autocast=self.precision if self.precision != torch.float32 else None, after_step=self._after_step,
        )
        self.epochs, self.batches_per_epoch = trainer.plan.epochs, sum(map(len, trainer.steps_of_epoch(0)))
        by_path = {layer.path: layer for layer in network.layers}
        self.names = layer_names(model.patcher, [PREFIX + path for path in by_path])
        self.key_map = restricted_key_map(model.patcher, self.names)
        clock = time.monotonic()
        outcome = "finished"
        with differentiable(
            model.model, by_path, precision=self.precision, checkpointing=config.gradient_checkpointing
        ) as made:
            self._rehearse(trainer, made)
            self.folder = RunFolder(self.root, config.name)
            self.folder.write_config(config)
            try:
                trainer.train()
            except BaseException as error:
                if not isinstance(error, Cancelled) and not is_host_interrupt(error):
                    self._rescue(trainer.run, error)
                    raise
                outcome = "cancelled"
        run = trainer.run
        if outcome == "cancelled":
            self.sink.take_cancel()
            if run.step == 0:
                self.folder.discard()
                raise host_interrupt()
        lora = self.lora_of(run)
        self._keep(lambda: self.folder.save(lora))
        self._keep(lambda: self.folder.write_losses(run.losses, run.rates))
        summary = self._summary(run, outcome, time.monotonic() - clock, latents.encoded, captions.encoded)
        self._keep(lambda: self.folder.write_summary(summary))
        self.sink.tell(summary.describe())
        if outcome == "cancelled":
            log.info("LoRA Workbench: cancelled after %d steps; what was trained is in %s", run.step, self.folder.path)
            if not config.keeps_on_cancel:
                raise host_interrupt()
        return Result(lora, summary)

    def _summary(self, run: Run, outcome: str, seconds: float, latents: int, captions: int) -> RunSummary:
        return RunSummary(
            name=self.folder.name, folder=str(self.folder.path), losses=tuple(run.losses),
            epoch_losses=tuple(run.epoch_losses),
            concept_losses={name: tuple(losses) for name, losses in run.concept_losses.items()},
            steps=run.step, epochs=run.epoch, images=run.images,
            checkpoints=tuple(self.checkpoints), outcome=outcome, seconds=seconds,
            encoded_latents=latents, encoded_captions=captions, skipped=self.dataset.skipped,
            not_saved=tuple(dict.fromkeys(self.not_saved)),
        )

    def _rehearse(self, trainer: Trainer, made: Differentiable) -> None:
        try:
            made.rehearse(trainer.rehearse)
        except (RuntimeError, KeyError, AttributeError, TypeError) as error:
            if not (looks_like_foreign_text(error) and comes_from_the_model(error)):
                raise
            width = trainer.captions.load(trainer.plan.captions()[0])[0][0].shape[-1]
            raise UserError(
                f"This CLIP does not go with this MODEL ({self.model.family}): its text vectors are {width} wide or "
                f"lack a part the model needs ({error}). Connect the CLIP of the same checkpoint."
            ) from error

    def _after_step(self, run: Run, epoch_ended: bool) -> None:
        every_steps, every_epochs = self.config.save_every_steps, self.config.save_every_epochs
        last = run.step >= run.total
        # The end of the run has a file of its own, without a number, as kohya names them.
        if every_steps and run.step % every_steps == 0 and not last:
            self._checkpoint(run, f"-step{run.step:08d}")
        if epoch_ended and every_epochs and run.epoch % every_epochs == 0 and not last:
            self._checkpoint(run, f"-{run.epoch:06d}")
        if epoch_ended:
            self._keep(lambda: self.folder.write_losses(run.losses, run.rates))

    def _checkpoint(self, run: Run, suffix: str) -> None:
        path = self._keep(lambda: self.folder.save(self.lora_of(run), suffix))
        if path:
            self.checkpoints.append(str(path))

    def _keep(self, write: Callable[[], T]) -> T | None:
        """Write a file of the run; when that fails say so and go on: hours of training are worth more than a file."""
        try:
            return write()
        except UserError as error:
            log.error("LoRA Workbench: %s", error)
            self.not_saved.append(str(error))
            self.sink.tell(str(error))
            return None

    def _rescue(self, run: Run, error: BaseException) -> None:
        """Keep what was trained when a run breaks off, and tell where."""
        log.error("LoRA Workbench: training broke off after step %d: %s", run.step, error)
        if run.step == 0:
            self.folder.discard()
            return
        path = self._keep(lambda: self.folder.save(self.lora_of(run), "-last-good"))
        self._keep(lambda: self.folder.write_losses(run.losses, run.rates))
        self._keep(lambda: self.folder.write_summary(self._summary(run, "failed", time.time() - self.started_at, 0, 0)))
        note = f"The LoRA as it was after step {run.step} is in {path}." if path else self.not_saved[-1]
        if isinstance(error, Diverged):
            error.args = (f"{error} {note}",)
        else:
            log.error("LoRA Workbench: %s", note)

    # -- what comes out ----------------------------------------------------------------------

    def lora_of(self, run: Run) -> LoraModel:
        """The LoRA as it is now, with the metadata of the run so far."""
        return lora_model(run, self.names, build_metadata(self._facts(run), self.dataset), self.key_map)

    def _facts(self, run: Run) -> RunFacts:
        config, source = self.config, SOURCES[self.config.optimizer]
        settings = [("weight_decay", config.weight_decay), *source.settings]
        timesteps = timesteps_in_force(config.timesteps, self.model.is_flow)
        return RunFacts(
            output_name=self.folder.name, session_id=self.session_id, started_at=self.started_at,
            finished_at=time.time(), model_class=self.model.family,
            v_prediction=self.model.prediction.startswith("v_prediction"), rank=run.network.rank,
            alpha=run.network.alpha, dropout=config.dropout, learning_rate=config.learning_rate,
            lora_plus=config.lora_plus,
            optimizer=f"{source.module}.{source.name}({','.join(f'{k}={v}' for k, v in settings)})",
            scheduler=scheduler_in_force(config), warmup_steps=warmup_in_force(config, run.total), max_steps=run.total,
            steps=run.step, epochs=self.epochs, epochs_done=run.epoch,
            batches_per_epoch=self.batches_per_epoch, batch_size=config.batch_size,
            gradient_accumulation=config.gradient_accumulation, max_grad_norm=config.max_grad_norm,
            seed=config.seed, mixed_precision="bf16" if self.precision == torch.bfloat16 else "no",
            gradient_checkpointing=config.gradient_checkpointing,
            # In kohya's words: logit-normal, then shifted. The table that is drawn from is shifted already.
            timestep_sampling="shift" if self.model.is_flow and timesteps == "logit-normal" else None,
            timesteps=timesteps,
            flow_shift=self.model.flow_shift, guidance=config.guidance if self.model.takes_guidance else None,
            losses=tuple(run.losses), epoch_losses=tuple(run.epoch_losses),
            concept_losses={name: losses[-1] for name, losses in run.concept_losses.items()},
        )


def lora_model(
    run: Run, names: dict[str, LayerNames], metadata: dict[str, str], key_map: dict[str, object]
) -> LoraModel:
    """The LoRA of a run as it is now, under kohya's names.

    Args:
        run: The run.
        names: What `layer_names` says of each of its layers.
        metadata: What is written with it.
        key_map: What it is read back against when it is saved.
    """
    tensors: dict[str, torch.Tensor] = {}
    with weights_to_keep(run.optimizer):
        for path, down, up in parameters_snapshot(run.network):
            name = names[PREFIX + path].kohya
            tensors[f"{name}.lora_down.weight"] = down
            tensors[f"{name}.lora_up.weight"] = up
            tensors[f"{name}.alpha"] = torch.tensor(float(run.network.alpha))
    return LoraModel(tensors, {layer.kohya: layer for layer in names.values()}, metadata, key_map)


def compute_precision(wanted: str, device: torch.device) -> torch.dtype:
    """What the frozen model computes in on this device: `auto` is bf16 where hardware has it, else fp32."""
    if wanted != "auto":
        return torch.bfloat16 if wanted == "bf16" else torch.float32
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:  # emulated by a processor it is twenty times slower; older releases of torch cannot tell
        told: Callable[[], dict[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)
        flags = told() if device.type == "cpu" else {}
        has_bf16 = any(flags.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.bfloat16 if has_bf16 else torch.float32


def looks_like_foreign_text(error: Exception) -> bool:
    """Whether an error of a forward pass says that the text does not fit the model."""
    if isinstance(error, (KeyError, AttributeError, TypeError)):
        return True  # a part of the conditioning that this model reads is not there
    text = str(error)
    return any(sign in text for sign in ("shapes cannot be multiplied", "size of tensor", "normalized_shape"))
