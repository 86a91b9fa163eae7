"""The base model's own trainings: what a stop leaves, and what they ship."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.mark.long
def test_a_vae_that_is_trained_from_nothing_goes_on_from_its_own_state(
    comfy_host: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a stop of `train.py --fresh`, which knows as well what is shipped."""
    from lora_workbench.lab.base_model import assemble, autoencoder
    from lora_workbench.lab.base_model.progress import Checkpoints

    monkeypatch.setattr(assemble, "CARD", tmp_path / "card.json")
    monkeypatch.setattr(autoencoder, "VAE", tmp_path / "vae.safetensors")
    assemble.write_card({"vae_steps": 6500})
    sample, state = torch.rand(2, 3, 128, 128) * 2 - 1, Checkpoints(tmp_path / "work")
    autoencoder.train(state, 2, sample, go_on=not state.from_nothing)
    assert not autoencoder.VAE.exists(), "what is shipped has had more steps"
    state.forget()
    for steps in (1, 2):
        state = Checkpoints(tmp_path / "work")
        autoencoder.train(state, steps, sample, go_on=not state.from_nothing)
        assert state.load("vae") == assemble.card()["vae_steps"] == steps
    assert autoencoder.VAE.exists()


class Stopped(Exception):
    """A training that was ended in the middle."""


def stop_after(module: Any, name: str, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a function of a module work so many times more."""
    plain, left = getattr(module, name), [calls]

    def counted(*args: Any) -> Any:
        if not left[0]:
            raise Stopped
        left[0] -= 1
        return plain(*args)

    monkeypatch.setattr(module, name, counted)


@pytest.mark.long
def test_trainings_that_were_stopped_end_where_others_do(
    comfy_host: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit, for VAE and denoiser; and data that were being written are made anew."""
    from lora_workbench.lab.base_model import assemble, autoencoder, denoiser
    from lora_workbench.lab.base_model.progress import Checkpoints

    vae, sample = autoencoder.finished(), torch.rand(2, 3, 128, 128) * 2 - 1
    monkeypatch.setattr(denoiser, "SCENES", 3)
    monkeypatch.setattr(denoiser, "FIGURES", 1)
    monkeypatch.setattr(denoiser, "TAILS", 2)
    monkeypatch.setattr(autoencoder, "WORLDLY", 4)
    trainings = {
        autoencoder: lambda state: autoencoder.train(state, 4, sample, go_on=False),
        denoiser: lambda state: denoiser.train(state, 4, go_on=False),
    }
    made: dict[Any, list[dict[str, torch.Tensor]]] = {autoencoder: [], denoiser: []}
    for stops in (False, True):
        folder = tmp_path / str(stops)
        state = Checkpoints(folder / "work")
        if stops:
            with monkeypatch.context() as broken:
                stop_after(denoiser, "model_latents", 0, broken)
                with pytest.raises(Stopped):
                    denoiser.make_data(state.folder, vae)
        denoiser.make_data(state.folder, vae)
        for module, draws in ((autoencoder, "batch"), (denoiser, "flow_loss")):
            with monkeypatch.context() as patch:
                patch.setattr(module, "SAVE_EVERY", 1)
                patch.setattr(module, "ship", lambda _file, tensors, module=module, **_: made[module].append(tensors))
                if stops:
                    with monkeypatch.context() as broken, pytest.raises(Stopped):
                        stop_after(module, draws, 2, broken)
                        trainings[module](state)
                trainings[module](state)
    for whole, resumed in made.values():
        assert assemble.checksum(whole) == assemble.checksum(resumed)
