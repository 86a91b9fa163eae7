"""Optimizer Options: each argument reaches the library's optimizer, or is refused in words."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from lora_workbench.training.adapters.lora import LoraAdapter
from lora_workbench.training.adapters.network import Network
from lora_workbench.training.config import SOURCES, TrainConfig, kohya_settings
from lora_workbench.training.errors import SettingError
from lora_workbench.training.optimizers import make_optimizer, weights_to_keep
from lora_workbench.training.options import OptimizerOptions

# A value of each that no optimizer has by itself.
VALUES: dict[str, Any] = {
    "beta1": 0.85, "beta2": 0.95, "beta3": 0.9995, "eps": 1e-6, "d_coef": 2.0, "d0": 1e-5, "growth_rate": 1.02,
    "bias_correction": False, "safeguard_warmup": False, "r": 0.5, "weight_lr_power": 1.0, "clip_threshold": 0.5,
    "decay_rate": -0.7, "scale_parameter": True, "eps1": "1e-20", "eps2": "1e-8",
}  # fmt: skip
TAKEN = [(name, setting) for name, source in SOURCES.items() for setting in source.takes]


def config(optimizer: str, **settings: Any) -> TrainConfig:
    return TrainConfig(optimizer=optimizer, learning_rate=1.0 if optimizer == "Prodigy" else 1e-4, **settings)


def optimizer(config: TrainConfig) -> Any:
    package = SOURCES[config.optimizer].module.partition(".")[0]
    pytest.importorskip(package, reason=f"{config.optimizer} comes from a package that is not installed")
    adapter = LoraAdapter("a.0.b", torch.zeros(4, 64), torch.zeros(64, 4), 1.0, 0.0)
    return make_optimizer(config, Network([adapter], torch.float32, torch.device("cpu")))


def arrived(made: Any, name: str) -> Any:
    """The value of an argument in every group of an optimizer, or in itself."""
    found = {group.get(name, getattr(made, name, None)) for group in made.param_groups}
    assert len(found) == 1
    return found.pop()


def test_every_option_has_an_optimizer_and_a_value_here():
    assert set(VALUES) == {setting for _, setting in TAKEN}
    assert {field.name for field in dataclasses.fields(OptimizerOptions)} == {*VALUES, "ema_decay"}


@pytest.mark.parametrize(("name", "setting"), TAKEN, ids="-".join)
def test_it_reaches_the_librarys_optimizer(name, setting):
    value = VALUES[setting]
    plain, made = optimizer(config(name)), optimizer(config(name, **{setting: value}))
    if setting.startswith("beta") and not (name == "Prodigy" and setting == "beta3"):
        expected = list(arrived(plain, "betas"))
        expected[int(setting[-1]) - 1] = value
        assert list(arrived(made, "betas"))[: len(expected)] == expected
    else:
        wanted = float(value) if isinstance(value, str) else value
        assert arrived(made, setting) == wanted != arrived(plain, setting)


@pytest.mark.parametrize("name", list(SOURCES))
def test_the_defaults_are_the_librarys(name):
    """Where nothing is set, an optimizer is made as it was without these options."""
    made, source = optimizer(config(name)), SOURCES[name]
    if source.betas:
        assert tuple(arrived(made, "betas"))[: len(source.betas)] == source.betas
    package = __import__(source.module, fromlist=[source.name])
    tensor = torch.nn.Parameter(torch.zeros(2, 2))
    plain = getattr(package, source.name)([tensor], lr=1e-4, **dict(source.settings))
    for setting in source.takes:
        if not setting.startswith("beta"):
            assert arrived(made, setting) == arrived(plain, setting)
        default = OptimizerOptions.__dataclass_fields__[setting].default
        if default not in (0, "auto") and isinstance(default, float):
            assert arrived(plain, setting) == default, "the tooltip shows another default than the library has"


@pytest.mark.parametrize(
    ("name", "setting"),
    [(name, setting) for name, source in SOURCES.items() for setting in VALUES if setting not in source.takes],
    ids="-".join,
)
def test_what_an_optimizer_does_not_have_is_refused(name, setting):
    label = setting.replace("_", " ")
    with pytest.raises(SettingError, match=rf"^{label} is .*, but {name} does not have it\. Set it to .*, or choose"):
        config(name, **{setting: VALUES[setting]})


def test_the_sentence():
    with pytest.raises(SettingError) as error:
        config("AdamW", d_coef=2.0)
    assert str(error.value) == (
        "d coef is 2, but AdamW does not have it. Set it to 1, or choose an optimizer that has it (Prodigy)."
    )
    with pytest.raises(SettingError, match=r"^safeguard warmup is off, but Lion does not have it\. Set it to on, or"):
        config("Lion", safeguard_warmup=False)


def test_an_average_of_an_average_is_refused():
    with pytest.raises(SettingError, match=r"^ema decay is 0\.999, but ScheduleFreeAdamW averages .*\. Set it to 0\.$"):
        config("ScheduleFreeAdamW", ema_decay=0.999)
    config("ScheduleFreeAdamW", r=0.5)


@pytest.mark.parametrize("text", ["", "small", "-1e-30", "0", "nan", "inf"])
def test_an_eps_that_is_no_number_is_refused(text):
    with pytest.raises(SettingError, match=r"^eps1 is '.*'\. Write a number above 0"):
        OptimizerOptions(eps1=text)


def test_the_metadata_shows_them():
    def shown(config: TrainConfig, **in_force: Any) -> str:
        return str(kohya_settings(config, in_force)["ss_optimizer"])

    assert shown(config("AdamW")) == "torch.optim.AdamW(weight_decay=0.01)"
    changed = config("AdamW", beta2=0.95, eps=1e-6)
    assert shown(changed) == "torch.optim.AdamW(weight_decay=0.01,betas=(0.9, 0.95),eps=1e-06)"
    eight_bit = shown(changed, optimizer="AdamW8bit")
    assert eight_bit == "bitsandbytes.optim.AdamW8bit(weight_decay=0.01,betas=(0.9, 0.95),eps=1e-06)"
    prodigy = shown(config("Prodigy", bias_correction=False, d_coef=2.0))
    assert prodigy.endswith("(weight_decay=0.01,safeguard_warmup=True,bias_correction=False,d_coef=2.0)")


@pytest.mark.parametrize("name", [name for name in SOURCES if f"{name}8bit" in SOURCES])
def test_the_8_bit_form_takes_the_same(name):
    one, other = SOURCES[name], SOURCES[f"{name}8bit"]
    assert one.takes == other.takes and one.betas == other.betas


def test_weights_come_back_when_the_way_to_those_to_keep_fails() -> None:
    """Schedule-free optimizers have two points, and memory may not suffice to go from one to the other."""
    made = optimizer(config("ScheduleFreeAdamW"))
    weight, other = (tensor for group in made.param_groups for tensor in group["params"])
    for tensor in (weight, other):
        tensor.grad = torch.ones_like(tensor)
    for _ in range(2):
        made.step()
    before = [tensor.clone() for tensor in (weight, other)]

    def fails() -> None:
        weight.add_(1.0)
        raise torch.OutOfMemoryError("Allocation on device")

    made.eval = fails
    with pytest.raises(torch.OutOfMemoryError), weights_to_keep(made):
        pass
    assert all(map(torch.equal, before, (weight, other)))
    del made.eval
    with weights_to_keep(made):
        assert not torch.equal(before[0], weight)
    assert all(map(torch.equal, before, (weight, other)))
