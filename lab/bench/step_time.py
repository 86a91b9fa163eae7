"""One case of the step-time benchmark, in a process of its own: prints one JSON line.

    step_time.py CASE MODEL_FILE [--steps N] [--precision fp32|bf16] [--side PIXELS]

Cases: `floor` (the frozen model's own forward and backward to its input, plain PyTorch), `ours`, `ours-batch4`,
`ours-checkpointing`, `host` (ComfyUI's TrainLoraNode at its defaults) and, on hosts that have it, `host-bypass`.
Rank 16, AdamW, no gradient checkpointing except in its own case, 256 px by default. With a GPU, the case runs on it and
memory is the GPU's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

from ...training.disk import write_whole
from .host import start_host
from .memory import PeakMemory

# A full-size Stable Diffusion 1.5 UNet, 859.5 M parameters, in the form the host's detection expects.
SD15_CONFIG = {
    "use_checkpoint": False, "image_size": 32, "use_spatial_transformer": True, "legacy": False,
    "adm_in_channels": None, "in_channels": 4, "out_channels": 4, "model_channels": 320,
    "use_temporal_resblock": False, "use_temporal_attention": False, "use_linear_in_transformer": False,
    "context_dim": 768, "num_res_blocks": [2, 2, 2, 2], "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
}  # fmt: skip


def make_model_file(path: Path) -> None:
    """Write the full-size UNet with seeded random weights, fp16, 1.7 GB."""
    import comfy.ops
    import comfy.supported_models
    import torch
    from safetensors.torch import save_file

    config = comfy.supported_models.SD15(dict(SD15_CONFIG))
    config.unet_config.update(SD15_CONFIG)
    config.set_inference_dtype(torch.float16, None)
    config.custom_operations = comfy.ops.disable_weight_init
    state = config.get_model({}, "").diffusion_model.state_dict()
    source = torch.Generator().manual_seed(1)
    for name, tensor in state.items():
        if tensor.ndim > 1:
            scale = tensor[0].numel() ** -0.5
            tensor.copy_((torch.randn(tensor.shape, generator=source) * scale).half())
        else:
            tensor.fill_(1.0 if name.endswith("weight") else 0.0)
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    write_whole(path, lambda part: save_file(tensors, part))


def now() -> float:
    """Seconds on the clock after the GPU has finished its queue."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def floor(file: Path, steps: int, precision: str, side: int) -> list[float]:
    """Time the frozen model alone: no trainer of adapters can be faster."""
    import comfy.ldm.modules.attention as attention
    import comfy.model_management
    import comfy.sd
    import torch

    patcher = comfy.sd.load_diffusion_model(str(file))  # outside inference mode: plain tensors autograd may save
    device = patcher.load_device
    if device.type != "cpu":  # the host would compute in half precision here
        patcher.set_model_compute_dtype(torch.float32)
    comfy.model_management.load_models_gpu([patcher])
    model = patcher.model.requires_grad_(False)
    x = torch.randn(1, 4, side // 8, side // 8, generator=torch.Generator().manual_seed(0)).to(device)
    context = torch.randn(1, 77, 768, generator=torch.Generator().manual_seed(1)).to(device)
    at = torch.tensor([5.0], device=device)
    options = {"optimized_attention_override": lambda _f, *a, **k: attention.attention_pytorch(*a, **k)}
    marks = [now()]
    with PeakMemory() as memory:
        for _ in range(steps):
            noised = x.clone().requires_grad_(True)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
                out = model.apply_model(noised, at, c_crossattn=context, transformer_options=options)
                out.float().square().mean().backward()
            marks.append(now())
    return report(marks, memory)


def ours(file: Path, steps: int, precision: str, side: int, batch: int, checkpointing: bool) -> dict:
    """Time our own loop on cached latents and captions."""
    import comfy.sd
    import folder_paths
    import torch
    from lora_workbench.training.cache.captions import CaptionStore
    from lora_workbench.training.cache.latents import LatentStore, cache_folders
    from lora_workbench.training.config import TrainConfig
    from lora_workbench.training.data.dataset import Dataset, Picture, Placement
    from lora_workbench.training.events import SilentSink
    from lora_workbench.training.host.model import HostModel
    from lora_workbench.training.host.text import HostText
    from lora_workbench.training.loop import train
    from lora_workbench.training.plan import Plan
    from lora_workbench.training.preflight import prepared

    with torch.inference_mode():
        model = HostModel(comfy.sd.load_diffusion_model(str(file)))
        latents, captions = cache_folders(Path(folder_paths.get_temp_directory()))
        latents.put("a", {"latent": torch.randn(1, 4, side // 8, side // 8)})
        captions.put("b", *HostText.pack([[torch.randn(1, 77, 768), {}]]))
        model.load((batch, 4, side // 8, side // 8), checkpointing)
    place = Placement((side, side), (side, side), (0, 0))
    dataset = Dataset((Picture(Path("a.png"), (side, side), "a", repeats=batch, placement=place),), bucket_step=64)
    marks = [now()]
    config = TrainConfig(
        steps=steps, rank=16, batch_size=batch, precision=precision, gradient_checkpointing=checkpointing
    )
    stores = (
        LatentStore(latents, dataset, {(0, False): "a"}, 0),
        CaptionStore(captions, {"a": "b"}, {}, 0, HostText.unpack),
    )
    with PeakMemory() as memory, prepared(model, Plan(dataset, config), *stores) as (setup, run, _):
        marks[0] = now()
        train(setup, run, SilentSink(), lambda *_: marks.append(now()))
    return report(marks, memory)


def host(file: Path, steps: int, precision: str, side: int, **more: object) -> dict:
    """Time ComfyUI's own TrainLoraNode on the same job, called as its executor calls it."""
    import comfy.model_management
    import comfy.sd
    import comfy.utils
    import torch

    from .native import native_lora

    marks = [now()]
    comfy.utils.set_progress_bar_global_hook(lambda *_, **__: marks.append(now()))
    with torch.inference_mode():
        patcher = comfy.sd.load_diffusion_model(str(file))
        comfy.model_management.load_models_gpu([patcher])  # so that its weights do not count as growth
        # Two pictures: with one the node of 0.3.75 stops with an error.
        latents = [{"samples": torch.randn(1, 4, side // 8, side // 8)} for _ in range(2)]
        positive = [[[torch.randn(1, 77, 768), {}]] for _ in range(2)]
        with PeakMemory() as memory:
            native_lora(
                patcher, latents, positive, batch_size=1, steps=steps, rank=16, training_dtype=precision,
                lora_dtype="fp32", gradient_checkpointing=False, **more,
            )  # fmt: skip
    return report(marks, memory)


def report(marks: list[float], memory: PeakMemory) -> dict:
    """Median step, without the first, which warms up, and the growth of memory."""
    each = [after - before for before, after in zip(marks, marks[1:], strict=False)]
    return {"seconds": statistics.median(each[1:] or each), "growth": memory.growth, "steps": len(each)}


def main() -> None:
    """Run one case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case")
    parser.add_argument("file", type=Path)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--side", type=int, default=256)
    args = parser.parse_args()
    start_host()
    if not args.file.exists():
        make_model_file(args.file)
    job = (args.file, args.steps, args.precision, args.side)
    cases = {
        "floor": lambda: floor(*job),
        "ours": lambda: ours(*job, batch=1, checkpointing=False),
        "ours-batch4": lambda: ours(*job, batch=4, checkpointing=False),
        "ours-checkpointing": lambda: ours(*job, batch=1, checkpointing=True),
        "host": lambda: host(*job),
        "host-bypass": lambda: host(*job, bypass_mode=True),
    }
    print("RESULT " + json.dumps({"case": args.case, **cases[args.case]()}), flush=True)
