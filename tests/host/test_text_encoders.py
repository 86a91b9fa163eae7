"""Text encoders trained with the model: the same encoding as a prompt's, what learns, what stays as it was."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from lora_workbench.training.config import SOURCES
from safetensors.torch import load_file
from support.rig import Rig, Snapshot, rig
from support.small_text import small_clip

pytestmark = pytest.mark.usefixtures("comfy_host")

TEXTS = (
    "a photo of zorp, (red:1.3) hat in the sun",
    "zorp",
    "",
    ", ".join(f"zorp number {n} on a table" for n in range(20)),  # three chunks of 75 tokens
)
ON: dict[str, Any] = {"clip_l": True, "clip_l_rate": 1e-3, "steps": 3}
BOTH: dict[str, Any] = ON | {"clip_g": True, "clip_g_rate": 5e-4}
EVERY: list[tuple[str, dict[str, Any], set[str]]] = [
    ("sd15", ON, {"clip_l"}),
    ("sdxl", BOTH, {"clip_l", "clip_g"}),
    ("sdxl", ON, {"clip_l"}),
    ("flux", ON, {"clip_l"}),
    ("flux", ON | {"other": True, "other_rate": 1e-3}, {"clip_l", "other"}),
]


def encoded(clip: Any, text: str) -> Any:
    """What CLIPTextEncode gives."""
    with torch.inference_mode():
        return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def same(one: Any, other: Any, off: float = 0.0) -> bool:
    (a, more), (b, others) = one[0], other[0]
    pairs = [(a, b)] + [(more[name], others[name]) for name in more if torch.is_tensor(more[name])]
    return more.keys() == others.keys() and all(
        x.shape == y.shape and torch.allclose(x.cpu(), y.cpu(), rtol=off, atol=off) for x, y in pairs
    )


def state_of(clip: Any) -> dict[str, Any]:
    """Everything of a CLIP that a run must leave as it was."""
    modules = clip.cond_stage_model.named_modules()
    encode = clip.cond_stage_model.clip_l.encode_token_weights
    return {
        "patch": encode,
        "tensors": {name: tensor.clone() for name, tensor in clip.cond_stage_model.state_dict().items()},
        "objects": {name: id(tensor) for name, tensor in clip.cond_stage_model.named_parameters()},
        "modules": [(name, id(module), module.training, sorted(vars(module))) for name, module in modules],
        "patches": clip.patcher.patches_uuid,
    }


def assert_untouched(clip: Any, before: Mapping[str, Any]) -> None:
    after = state_of(clip)
    assert all(torch.equal(tensor, after["tensors"][name]) for name, tensor in before["tensors"].items())
    assert all(before[part] == after[part] for part in ("objects", "modules", "patches", "patch"))


def lora_of(it: Rig) -> Any:
    """The LORA_MODEL of a run, as its keeper makes it."""
    from lora_workbench.training.host.keys import restricted_key_map, trained_names
    from lora_workbench.training.lora import LoraModel

    encoders = it.model.text.modules
    names = trained_names(it.patcher, encoders, [(a.path, a.part_of) for a in it.network.adapters])
    key_map = restricted_key_map(it.patcher, names, encoders)
    tensors = it.network.saved_tensors({path: layer.kohya for path, layer in names.items()})
    return LoraModel(tensors, {layer.kohya: layer for layer in names.values()}, {}, key_map)


@pytest.mark.parametrize("skip", [None, -3])
@pytest.mark.parametrize(("name", "settings", "parts"), EVERY[:4])
def test_a_caption_is_encoded_as_a_prompt_is(name, settings, parts, skip, small_models_folder, tmp_path):
    """Weights in parentheses, chunks of 75 tokens, clip skip; frozen encoders come from the cache."""
    clip = small_clip(name)
    if skip and name != "flux":
        clip.clip_layer(skip)
    wanted = [encoded(clip, text) for text in TEXTS]
    with rig(name, small_models_folder, tmp_path, clip=clip, texts=TEXTS, **settings) as it:
        text = it.model.text
        assert text.frozen == {"flux": ["t5xxl"], "sdxl": [] if "clip_g" in parts else ["clip_g"]}.get(name, [])
        for frozen in text.frozen:
            getattr(text.modules, frozen).transformer = None  # it must not run
        for caption, expected in zip(TEXTS, wanted, strict=True):
            found = text.encode(caption)
            tensors = [found[0][0], found[0][1]["pooled_output"]]
            # Of CLIP-L, Flux takes the pooled vector alone, and SDXL all but that.
            assert [tensor.requires_grad for tensor in tensors] == [name != "flux", name != "sdxl" or len(parts) > 1]
            assert same(found, expected, off=1e-5), caption


@pytest.mark.parametrize(
    ("name", "settings", "parts", "checkpointing"),
    [
        pytest.param(*case, checkpointing, marks=[pytest.mark.long] if case[0] == "sdxl" else [])
        for case in EVERY
        for checkpointing in (False, True)
    ],
)
def test_all_parts_learn_and_everything_goes_back(
    name, settings, parts, checkpointing, small_models_folder, tmp_path, monkeypatch
):
    """And what was learned is what the host makes of the LoRA, for the model and for the text."""
    import comfy.model_management
    from lora_workbench.training.host.apply import apply_lora, has_text_layers

    clip = small_clip(name)
    before, model_before = state_of(clip), None
    with rig(
        name, small_models_folder, tmp_path, clip=clip, texts=TEXTS, gradient_checkpointing=checkpointing, **settings
    ) as it:
        with it.left():
            model_before = Snapshot(it.patcher)
        it.train()
        moved: dict[str, float] = {}
        for adapter in it.network.adapters:
            moved[adapter.part_of] = max(moved.get(adapter.part_of, 0.0), float(adapter.up.master.abs().max()))
        assert set(moved) == {"denoiser"} | parts and min(moved.values()) > 1e-4, moved
        with torch.no_grad():
            ours = [it.model.text.encode(text) for text in TEXTS]
        lora = lora_of(it)
    assert not model_before.differences(Snapshot(it.patcher))
    assert_untouched(clip, before)
    assert has_text_layers(clip, lora)
    model, applied = apply_lora(it.patcher, clip, lora, 1.0, 1.0)
    for text, mine in zip(TEXTS, ours, strict=True):
        theirs = encoded(applied, text)
        assert same(mine, theirs, off=2e-4), text
        assert not same(theirs, encoded(clip, text), off=1e-4), text
    comfy.model_management.unload_all_models()  # the host takes its patch off
    after = clip.cond_stage_model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before["tensors"].items())


def test_each_encoder_has_its_rate(small_models_folder, tmp_path):
    clip = small_clip("sdxl")
    settings = BOTH | {"lora_plus": 2.0}
    with rig("sdxl", small_models_folder, tmp_path, clip=clip, texts=TEXTS, **settings) as it:
        found = sorted((group["part"], group["initial_lr"]) for group in it.run.optimizer.param_groups)
    assert found == [
        ("clip_g", 5e-4), ("clip_g", 1e-3), ("clip_l", 1e-3), ("clip_l", 2e-3), ("denoiser", 1e-3), ("denoiser", 2e-3)
    ]  # fmt: skip


@pytest.mark.parametrize("optimizer", ["AdamW", "Prodigy", "ScheduleFreeAdamW", *(
    pytest.param(name, marks=pytest.mark.long) for name in ("AdamW8bit", "Lion", "Lion8bit", "Adafactor", "CAME")
)])  # fmt: skip
def test_an_encoder_stops_when_it_should(optimizer, small_models_folder, tmp_path):
    """Under every optimizer it does not move any more, and the others do."""
    pytest.importorskip(SOURCES[optimizer].module.split(".")[0], reason=f"{optimizer} is not installed")
    clip = small_clip("sd15")
    rate = {"Prodigy": 1.0, "Lion": 1e-4}.get(optimizer, 1e-3)
    settings = ON | {"steps": 4, "clip_l_until": 50.0, "scheduler": "constant", "optimizer": optimizer}
    settings |= {"learning_rate": rate, "clip_l_rate": 0.0 if optimizer == "Prodigy" else rate}
    moves: list[dict[str, torch.Tensor]] = []

    def after_step(run: Any, _: bool) -> None:
        flat = run.network.flat
        moves.append({part: flat.master[at].clone() for (part, kind), at in flat.groups.items() if kind == "up"})

    with rig("sd15", small_models_folder, tmp_path, clip=clip, texts=TEXTS, after_step=after_step, **settings) as it:
        it.train()
        assert it.model.text.stopped >= {"clip_l"}
        assert not it.model.text.encode(TEXTS[0])[0][0].requires_grad
    assert not torch.equal(moves[0]["clip_l"], moves[1]["clip_l"])
    assert torch.equal(moves[1]["clip_l"], moves[3]["clip_l"])
    assert not torch.equal(moves[1]["denoiser"], moves[3]["denoiser"])


def test_captions_are_dropped_out_apart_and_parts_alike(small_models_folder, tmp_path):
    """Each caption has a mask of its own, which does not depend on the pictures that it shares a batch with."""
    from lora_workbench.training.rung import Rung

    grads, short = [], (*TEXTS[:3], "a red hat")  # of one length, as the plan makes batches
    for size in (0, 1):
        clip = small_clip("sd15")
        settings = ON | {"dropout": 0.5, "batch_size": 4, "gradient_checkpointing": True}
        with rig(
            "sd15", small_models_folder, tmp_path, clip=clip, texts=short, only=Rung(micro_batch=size), **settings
        ) as it:
            with torch.no_grad():
                for n, adapter in enumerate(it.network.adapters):
                    draws = torch.Generator().manual_seed(n)
                    adapter.up.master.copy_(torch.randn(adapter.up.master.shape, generator=draws) * 0.05)
            it.network.flat.refresh()
            it.network.begin_micro_step(0, 0)
            one, other = (it.setup.conditioning(text)[0][0] for text in ("zorp", "zorp zorp"))
            assert not torch.equal(one[:, 0], other[:, 0]), "the first token sees nothing but itself and its mask"
            it.step()
            grads.append({
                part: it.network.flat.total[at].clone() for (part, kind), at in it.network.flat.groups.items()
            })  # fmt: skip
    for part, whole in grads[0].items():
        assert float((whole - grads[1][part]).norm() / whole.norm()) < 1e-3, part


def test_prior_preservation_is_towards_the_model_without_the_lora(small_models_folder, tmp_path):
    """Also its text encoders': the target of a preserved picture does not move with what is learned."""
    from lora_workbench.training.step import clean_target

    clip = small_clip("sd15")
    settings = ON | {"learning_rate": 1e-2, "clip_l_rate": 1e-2}
    with rig(
        "sd15", small_models_folder, tmp_path, clip=clip, texts=TEXTS, targets=["model"] * 4, pictures=4, **settings
    ) as it:
        micro = it.prepare()
        before = clean_target(it.setup, micro)
        with torch.no_grad():
            for adapter in it.network.adapters:
                adapter.up.master.normal_(std=0.1)
        it.network.flat.refresh()
        assert torch.equal(before, clean_target(it.setup, micro))


def kohya_text_keys(prefix: str, layers: int) -> set[str]:
    """The names that kohya's trainer gives a CLIP's layers (`networks/lora.py`: CLIPAttention and CLIPMLP)."""
    names = [f"self_attn_{name}_proj" for name in ("q", "k", "v", "out")] + ["mlp_fc1", "mlp_fc2"]
    return {f"{prefix}_text_model_encoder_layers_{n}_{name}" for n in range(layers) for name in names}


@pytest.mark.parametrize(("name", "settings", "prefixes"), [
    ("sd15", ON, ["lora_te"]), ("sdxl", BOTH, ["lora_te1", "lora_te2"]), ("flux", ON, ["lora_te1"]),
])  # fmt: skip
def test_names_are_kohyas_and_are_read_back(name, settings, prefixes, small_models_folder, tmp_path, monkeypatch):
    from lora_workbench.training.files import save
    from lora_workbench.training.host.keys import read_back

    with rig(name, small_models_folder, tmp_path, clip=small_clip(name), texts=TEXTS, **settings) as it:
        lora = lora_of(it)
    text = {key.partition(".")[0] for key in lora if key.startswith("lora_te")}
    assert text == set().union(*(kohya_text_keys(prefix, 3) for prefix in prefixes))
    assert read_back(lora, lora.key_map) == (len(lora.layers), [])
    monkeypatch.setattr(save, "loras_folder", lambda: tmp_path / "loras")
    for layout in ("kohya", "peft"):
        path = save.save_lora(lora, layout, precision="fp32", layout=layout, overwrite=False)
        keys = {key.rpartition(".lora_A")[0] for key in load_file(path) if ".lora_A" in key}
        assert not keys or "text_encoder.text_model.encoder.layers.2.mlp.fc2" in keys


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("sd15", {"clip_g": True}, "clip g is on in Text Encoder Options, but this CLIP has clip_l. Turn clip g off"),
        ("sdxl", {"other": True}, "this CLIP has clip_l and clip_g. Turn other off"),
    ],
)
def test_an_encoder_that_is_not_there_is_refused(name, settings, words, small_models_folder, tmp_path):
    from lora_workbench.training.errors import UserError

    with pytest.raises(UserError, match=words), rig(
        name, small_models_folder, tmp_path, clip=small_clip(name), texts=TEXTS, **settings
    ):
        pass


@pytest.mark.long
def test_encoders_with_dropout_are_counted_as_not_recomputed(small_models_folder, tmp_path):
    from lora_workbench.training.rung import Rung

    steps, rung = [], Rung(checkpointing=True)
    for dropout in (0.0, 0.5):
        settings = BOTH | {"dropout": dropout}
        clip = small_clip("sdxl")
        with (
            rig("sdxl", small_models_folder, tmp_path, clip=clip, texts=TEXTS, only=rung, **settings) as it,
            it.left(),
        ):
            steps.append(it.ready.fit.need(rung).step)
            assert not it.ready.fit.is_rough
    assert steps[1] > steps[0]


def test_an_encoder_that_no_gradient_reaches_is_refused(small_models_folder, tmp_path, monkeypatch):
    from lora_workbench.training.errors import UserError

    clip = small_clip("sdxl")
    monkeypatch.setattr(
        clip.cond_stage_model.clip_l, "encode_token_weights",
        torch.no_grad()(clip.cond_stage_model.clip_l.encode_token_weights), raising=False,
    )  # fmt: skip
    with pytest.raises(UserError, match="clip l get no gradient .* Turn clip l off"), rig(
        "sdxl", small_models_folder, tmp_path, clip=clip, texts=TEXTS, **BOTH
    ):
        pass


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision(precision, small_models_folder, tmp_path):
    """With encoders in half precision on disk: no table of words is copied, and the loss stays finite."""
    clip = small_clip("sd15", torch.float16)
    table = clip.cond_stage_model.clip_l.transformer.get_input_embeddings()
    place, expected = table.weight.data_ptr(), encoded(clip, TEXTS[0])[0][0]
    with rig(
        "sd15", small_models_folder, tmp_path, clip=clip, texts=TEXTS, precision=precision, side=64,
        **ON | {"steps": 1, "batch_size": 1},
    ) as it:
        assert table.weight.data_ptr() == place and not table.weight.is_inference()
        found = it.model.text.encode(TEXTS[0])[0][0].detach()
        assert float((found - expected).norm() / expected.norm()) < 0.01, "the host computes it in fp32"
        assert all(map(math.isfinite, it.train().losses))
        assert any(a.part_of == "clip_l" and float(a.up.master.abs().max()) > 0 for a in it.network.adapters)
    assert table.weight.data_ptr() == place and table.weight.is_inference()


@pytest.mark.parametrize(("name", "settings", "parts"), [EVERY[1], EVERY[3]])
def test_memory_counts_the_encoders(name, settings, parts, small_models_folder, tmp_path):
    """By a dry run of the encoders too, which reads nothing of them."""
    from lora_workbench.training.rung import Rung

    needs, clip = {}, small_clip(name)
    for is_trained in (False, True):
        changes = settings if is_trained else {"steps": 1}
        with rig(name, small_models_folder, tmp_path, clip=clip, texts=TEXTS, only=Rung(), **changes) as it:
            with it.left():
                needs[is_trained] = it.ready.fit.need(Rung())
            assert not it.ready.fit.is_rough
    numbers = sum(tensor.numel() for tensor in clip.cond_stage_model.parameters())
    assert needs[True].weights - needs[False].weights == pytest.approx(4 * numbers, rel=0.01)
    assert needs[True].lora > needs[False].lora
    assert needs[True].step > needs[False].step


@pytest.mark.parametrize("ends", ["error", "cancel"])
def test_the_clip_goes_back_however_a_run_ends(ends, small_models_folder, tmp_path):
    from lora_workbench.training.events import Cancelled, SilentSink

    class Stop(SilentSink):
        is_cancelled = False

        def cancelled(self) -> bool:
            return self.is_cancelled

    def after_step(run: Any, _: bool) -> None:
        if ends == "error":
            raise ZeroDivisionError
        sink.is_cancelled = True

    clip, sink = small_clip("sd15"), Stop()
    encoder = clip.cond_stage_model.clip_l
    other_nodes = encoder.encode_token_weights
    encoder.encode_token_weights = lambda tokens: other_nodes(tokens)
    before = state_of(clip)
    with (
        pytest.raises(ZeroDivisionError if ends == "error" else Cancelled),
        rig(
            "sd15", small_models_folder, tmp_path, clip=clip, texts=TEXTS, sink=sink, after_step=after_step,
            **ON | {"clip_l_until": 34.0},
        ) as it,
    ):
        it.train()
    assert_untouched(clip, before)
    import comfy.model_management as management

    assert management.intermediate_device.__module__ == "comfy.model_management"


def test_encoders_that_only_take_memory_are_named_and_stay_when_weights_stream(
    small_models_folder, tmp_path, monkeypatch
):
    from lora_workbench.training import preflight
    from lora_workbench.training.events import SilentSink

    class Hints(SilentSink):
        said: tuple[str, ...] = ()

        def hint(self, sentence: str) -> None:
            self.said += (sentence,)

    monkeypatch.setattr(preflight, "GIB", 1)
    clip, sink = small_clip("flux"), Hints()
    with rig("flux", small_models_folder, tmp_path, clip=clip, texts=TEXTS, sink=sink, **ON) as it:
        text = sum(tensor.nbytes for tensor in clip.cond_stage_model.parameters())
        assert it.ready.fit._least == pytest.approx(text + 0.05 * (it.ready.fit._weights - text), rel=0.02)
    assert [hint for hint in sink.said if hint.startswith("t5xxl is not trained but stays loaded (0.0 GB)")]
