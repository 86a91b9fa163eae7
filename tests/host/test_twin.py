"""The twin of a model that has no data: the same layers and sizes, and the model itself is left alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn


@pytest.fixture
def patcher(comfy_host: Any) -> Any:
    """A narrow Z-Image with drawn weights in bf16, made as the host makes one."""
    from lora_workbench.lab.bench.models import SHAPES, random_model

    with torch.inference_mode():
        return random_model(SHAPES["zimage-narrow"], torch.bfloat16, torch.device("cpu"))


def peak(patcher: Any, checkpointing: bool = False) -> int:
    """What a step holds by a dry run."""
    from lora_workbench.lab.bench.cases import Job, our_inputs
    from lora_workbench.training.adapters.network import layers_to_train
    from lora_workbench.training.dry_run import DryRun
    from lora_workbench.training.host.model import HostModel

    job = Job("zimage-narrow", 128, "bf16", 1, checkpointing=checkpointing)
    plan, latents, captions = our_inputs(job)
    _, batch = plan.largest()
    shapes = {batch.bucket: tuple(latents.load(0, False).shape)}
    model = HostModel(patcher)
    layers = layers_to_train(model.targets(), plan.config.rank, plan.config.effective_alpha)
    return DryRun(model, plan, captions, shapes, torch.bfloat16, layers).peak(0, batch, job.rung)


def everything(model: nn.Module) -> dict[str, Any]:
    """Every attribute of every module and what its containers hold, by identity."""
    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            held: Any = None
            if isinstance(value, dict):
                held = [(key, id(item)) for key, item in value.items()]
            elif isinstance(value, (list, set)):
                held = [id(item) for item in value]
            found[f"{path}.{name}"] = (id(value), held)
    return found


def first_linear(patcher: Any) -> Any:
    """A trained layer of a block."""
    return patcher.model.diffusion_model.layers[0].feed_forward.w1


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_dry_run_leaves_the_model_as_it_was(
    checkpointing: bool, patcher: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the model keeps something for its next call."""
    from support.rig import Snapshot

    diffusion_model = patcher.model.diffusion_model
    plain, calls = type(diffusion_model).forward, []

    def keeping(self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        self.cache["last"], self.last = x, x
        self.seen.append(x)
        calls.append(x.device.type)
        return plain(self, x, *args, **kwargs)

    diffusion_model.cache, diffusion_model.seen = {}, []
    monkeypatch.setattr(type(diffusion_model), "forward", keeping)
    before, objects = Snapshot(patcher), everything(patcher.model)
    assert peak(patcher, checkpointing) > 2**20
    assert calls and set(calls) == {"meta"}
    assert before.differences(Snapshot(patcher)) == []
    assert everything(patcher.model) == objects
    assert diffusion_model.cache == {} and diffusion_model.seen == [] and not hasattr(diffusion_model, "last")


def test_the_twin_shares_no_tensor_and_has_no_data(patcher: Any) -> None:
    from lora_workbench.training.host.model import HostModel
    from lora_workbench.training.host.twin import Twin

    model = HostModel(patcher)
    twin = Twin(model, torch.bfloat16)
    mine = dict(patcher.model.diffusion_model.named_parameters())
    its = dict(twin.model.diffusion_model.named_parameters())
    assert its.keys() == mine.keys() and len(its) > 20
    assert all(its[name].device.type == "meta" and its[name].shape == mine[name].shape for name in its)
    assert list(twin.targets()) == list(model.targets())
    assert not {id(module) for module in twin.model.modules()} & {id(module) for module in patcher.model.modules()}
    torch.testing.assert_close(twin.sigma_table(), model.sigma_table())


def test_a_module_that_is_used_twice_is_one_in_the_twin(patcher: Any) -> None:
    from lora_workbench.training.host.model import HostModel
    from lora_workbench.training.host.twin import Twin

    layers = patcher.model.diffusion_model.layers
    layers[1] = layers[0]
    made = Twin(HostModel(patcher), torch.bfloat16).model.diffusion_model.layers
    assert made[0] is made[1]


def compiled(patcher: Any) -> None:
    layers = patcher.model.diffusion_model.layers
    layers[0] = torch.compile(layers[0], backend="eager")


def patched(patcher: Any) -> None:
    """As the host leaves a layer whose LoRA is added when it computes, and one on pages."""

    def never(*_: Any) -> Any:
        raise AssertionError("a patch of the original ran")

    layer = first_linear(patcher)
    layer.weight_function, layer.bias_function, layer._v = [never], [never], object()


def given_a_forward(patcher: Any) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("the original's forward ran")

    first_linear(patcher).forward = never


def with_hooks(patcher: Any) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("a hook of the original ran")

    first_linear(patcher).register_forward_pre_hook(never)


def in_fp8(patcher: Any) -> None:
    for module in patcher.model.diffusion_model.modules():
        if isinstance(module, nn.Linear):
            module.weight = nn.Parameter(module.weight.to(torch.float8_e4m3fn), requires_grad=False)


def packed(patcher: Any) -> None:
    """As GGUF layers are: bytes of another shape, and the layer unpacks them itself."""
    for module in patcher.model.diffusion_model.modules():
        if isinstance(module, nn.Linear):
            size = module.weight.numel() * 9 // 16
            module.weight = nn.Parameter(torch.zeros(1, size, dtype=torch.uint8), requires_grad=False)
            module.cast_bias_weight = None


def not_a_linear(patcher: Any) -> None:
    """As the host's quantized layers are: linear by name and by what they have."""

    class QuantizedLinear(nn.Module):
        bias = None

    quantized = QuantizedLinear()
    layer = first_linear(patcher)
    assert layer.bias is None
    quantized.in_features, quantized.out_features = layer.in_features, layer.out_features
    quantized.weight_function, quantized.weight = [], torch.zeros(7, dtype=torch.uint8)
    patcher.model.diffusion_model.layers[0].feed_forward.w1 = quantized


@pytest.mark.parametrize(
    "change", [compiled, patched, given_a_forward, with_hooks, in_fp8, packed, not_a_linear],
    ids=lambda change: change.__name__,
)  # fmt: skip
def test_a_layer_counts_by_its_shape_whatever_was_done_to_it(
    change: Callable[[Any], None], patcher: Any, comfy_host: Any
) -> None:
    from lora_workbench.lab.bench.models import SHAPES, random_model
    from lora_workbench.training.host.model import HostModel
    from lora_workbench.training.host.twin import Twin

    with torch.inference_mode():
        other = random_model(SHAPES["zimage-narrow"], torch.bfloat16, torch.device("cpu"))
        change(other)
    objects = everything(other.model)
    made, plain = (Twin(HostModel(one), torch.bfloat16).model for one in (other, patcher))
    assert [name for name, _ in made.named_modules()] == [name for name, _ in plain.named_modules()]
    for checkpointing in (False, True):
        assert peak(other, checkpointing) == peak(patcher, checkpointing)
    assert everything(other.model) == objects
