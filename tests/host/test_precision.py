"""The dtype that a run computes in: how it is chosen, and that it changes little."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.rig import Snapshot, rig, sample


@pytest.mark.parametrize(
    ("flags", "expected"),
    [({"avx512_bf16": True}, torch.bfloat16), ({"avx2": True, "avx512_bf16": False}, torch.float32)],
)
def test_auto_is_bf16_where_the_processor_has_it(flags, expected, comfy_host, monkeypatch):
    from lora_workbench.training.host.precision import DTYPES, compute_precision

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags, raising=False)
    cpu = torch.device("cpu")
    assert compute_precision("auto", cpu, torch.float16) == expected
    for name, dtype in DTYPES.items():
        assert compute_precision(name, cpu, torch.float32) == dtype
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert compute_precision("auto", cpu, torch.float16) == torch.float32, "an older torch cannot tell"


@pytest.mark.parametrize(("hip", "has_bf16", "has_fp16", "expected"), [
    (None, True, True, torch.bfloat16), (None, False, True, torch.float16), (None, False, False, torch.float32),
    ("6.4", True, True, torch.float32),
])  # fmt: skip
def test_auto_on_cards(hip, has_bf16, has_fp16, expected, comfy_host, monkeypatch):
    """fp16 on an NVIDIA card without bf16 whose fp16 works; elsewhere what the host computes in, if we know it."""
    import comfy.model_management
    from lora_workbench.training.host.precision import compute_precision

    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: has_bf16)
    monkeypatch.setattr(comfy.model_management, "should_use_fp16", lambda *_: has_fp16)
    assert compute_precision("auto", torch.device("cuda"), torch.float32) == expected
    assert compute_precision("auto", torch.device("mps"), torch.float16) == torch.float16
    assert compute_precision("auto", torch.device("xpu"), torch.float8_e4m3fn) == torch.float32


@pytest.mark.parametrize("name", ["sd3", "zimage"])
def test_fp16_changes_little(name: str, comfy_host: Any, small_models_folder: Any, tmp_path: Any) -> None:
    losses = []
    for precision in ("fp32", "fp16"):
        with rig(name, small_models_folder, tmp_path / precision, steps=4, precision=precision) as it:
            losses.append(it.train().losses)
            total = it.network.flat.total
            assert total.isfinite().all() and total.any()
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


def test_half_and_eighth_precision_weights(comfy_host, small_models_folder, tmp_path):
    """Half-precision weights are cast at each use, forward and backward. No copy is kept."""
    import comfy.sd

    losses = {}
    file = next(small_models_folder.glob("sd15-*.safetensors"))
    for dtype in (torch.float32, torch.bfloat16, torch.float8_e4m3fn):
        with torch.inference_mode():
            patcher = comfy.sd.load_diffusion_model(str(file), model_options={"dtype": dtype})
        sample(patcher, "sd15")
        before = Snapshot(patcher)
        with rig("sd15", small_models_folder, tmp_path / str(dtype), patcher=patcher, epochs=1) as it:
            losses[dtype] = it.train().losses
        assert before.differences(Snapshot(patcher)) == []
    assert losses[torch.bfloat16] == pytest.approx(losses[torch.float32], rel=0.02)
    assert losses[torch.float8_e4m3fn] == pytest.approx(losses[torch.float32], rel=0.1)
