"""A CLIP as captioner: the host's own text generation, on hosts that have it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image


@pytest.fixture
def seeing(comfy_host: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    import comfy.sd
    from support.seeing_clip import seeing_clip

    if not hasattr(comfy.sd.CLIP, "generate"):
        pytest.skip("this ComfyUI has no Generate Text")
    return seeing_clip(monkeypatch)


def test_a_clip_captions_as_the_hosts_own_node_writes(seeing: Any, tmp_path: Path) -> None:
    from comfy_extras.nodes_textgen import TextGenerate
    from lora_workbench.training.cache.store import TensorCache
    from lora_workbench.training.captions.auto import CaptioningConfig, caption_dataset
    from lora_workbench.training.captions.text_encoder import TextGenerator
    from lora_workbench.training.captions.vision_language import SentenceSettings
    from lora_workbench.training.data.scan import scan_folder
    from lora_workbench.training.data.tensors import image_tensor
    from lora_workbench.training.events import SilentSink

    pictures = [Image.new("RGB", (64, 64), color) for color in ("#d01010", "#1030d0", "#20a040")]
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number}.png")
    before = {name: value.clone() for name, value in seeing.cond_stage_model.state_dict().items()}
    with torch.inference_mode():  # as ComfyUI runs nodes
        captioner = TextGenerator(seeing, SentenceSettings(prompt="What is it?", max_tokens=12))
        dataset = caption_dataset(
            scan_folder(tmp_path),
            captioner,
            CaptioningConfig(mode="replace"),
            TensorCache(tmp_path / "texts"),
            SilentSink(),
        ).dataset
        theirs = [
            TextGenerate.execute(seeing, "What is it?", 12, {"sampling_mode": "off"}, image=image_tensor(picture))
            for picture in pictures
        ]
    captions = [picture.caption for picture in dataset.pictures]
    assert captions == [" ".join(output.args[0].split()) for output in theirs]
    assert len(set(captions)) == 3 and all(captions), "it did not look at the pictures"
    after = seeing.cond_stage_model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(value, after[name]) for name, value in before.items())


def test_the_identity_follows_the_settings_and_the_weights(seeing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from lora_workbench.training.captions.text_encoder import TextGenerator
    from lora_workbench.training.captions.vision_language import SentenceSettings
    from support.seeing_clip import seeing_clip

    def identity(clip: Any, **settings: Any) -> str:
        return TextGenerator(clip, SentenceSettings(**settings)).identity

    again, other = seeing_clip(monkeypatch), seeing_clip(monkeypatch)
    next(other.cond_stage_model.parameters()).data.add_(1)
    assert identity(seeing) == identity(again) != identity(seeing, max_tokens=9)
    assert identity(other) != identity(seeing)


def test_a_clip_that_sees_nothing_is_refused(comfy_host: Any, tiny_checkpoint: Path) -> None:
    import comfy.sd
    from lora_workbench.training.captions.text_encoder import TextGenerator
    from lora_workbench.training.captions.vision_language import SentenceSettings
    from lora_workbench.training.errors import UserError

    clip = comfy.sd.load_checkpoint_guess_config(str(tiny_checkpoint), output_vae=False, output_model=False)[1]
    with pytest.raises(UserError, match=r"cannot write text|cannot see pictures"):
        TextGenerator(clip, SentenceSettings()).caption([Image.new("RGB", (64, 64))])
