"""What the LoRA and its optimizer are reckoned to hold, against what they really hold."""

from __future__ import annotations

import gc
import importlib.util
from typing import Any

import pytest
import torch
from lora_workbench.training.config import SOURCES, TrainConfig

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def reached(*roots: Any) -> int:
    """Bytes of all tensors that hang on these objects, each storage once."""
    sizes: dict[int, int] = {}
    seen: set[int] = set()
    waiting = list(roots)
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or isinstance(thing, (type, str, int, float)):
            continue
        seen.add(id(thing))
        if isinstance(thing, torch.Tensor):
            sizes[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
            waiting.append(thing.grad)
        elif isinstance(thing, dict):
            waiting.extend(thing.values())
        elif isinstance(thing, (list, tuple, set)):
            waiting.extend(thing)
        elif type(thing).__module__.startswith(("lora_workbench", "torch.optim", "bitsandbytes.optim", "pytorch_opt")):
            waiting.extend(vars(thing).values())
    return sum(sizes.values())


def network(dtype: torch.dtype) -> Any:
    """A LoRA on the feed-forward layers of four blocks, 3 million numbers."""
    from lora_workbench.training.adapters.network import layers_to_train, make_network

    shapes = [(512, 2048), (2048, 512)]
    targets = {f"blocks.{n}.ff.{k}": torch.nn.Linear(*shapes[k]) for n in range(4) for k in range(2)}
    layers = layers_to_train(targets, 160, 16.0)
    return make_network(layers, dropout=0.0, seed=0, dtype=dtype, device=torch.device("cpu"))


@pytest.mark.parametrize("precision", list(PRECISIONS))
@pytest.mark.parametrize(
    ("optimizer", "ema_decay"), [*((name, 0.0) for name in SOURCES), ("AdamW", 0.999), ("Lion", 0.999)]
)
def test_what_is_reckoned_for_an_optimizer_is_what_it_holds(
    optimizer: str, ema_decay: float, precision: str, comfy_host: Any
) -> None:
    from lora_workbench.training.guard import Guard
    from lora_workbench.training.ladder import lora_bytes
    from lora_workbench.training.optimizers import make_optimizer

    package = SOURCES[optimizer].module.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    dtype = PRECISIONS[precision]
    rate = 1.0 if optimizer == "Prodigy" else 1e-4
    config = TrainConfig(optimizer=optimizer, learning_rate=rate, ema_decay=ema_decay)
    with torch.inference_mode(False):
        made = network(dtype)
        flat = made.flat
        used = make_optimizer(config, made)
        guard = Guard(flat, used, is_scaled=False, ema_decay=ema_decay)
        for seed in range(2):  # before the second step the guard copies a state that the first one made
            flat.begin_step()
            flat.grad.normal_(generator=torch.Generator().manual_seed(seed))
            flat.add_up()
            assert float(guard.step(torch.tensor(1.0), torch.tensor(1.0))) == 0
    gc.collect()
    numbers = sum(view.master.numel() for view in flat.views)
    held = reached(flat, used.state, used.param_groups, vars(guard))
    reckoned = lora_bytes(config, numbers, dtype.itemsize, eight_bit=False)
    assert held > 12 * numbers
    assert reckoned == pytest.approx(held, rel=0.03)
