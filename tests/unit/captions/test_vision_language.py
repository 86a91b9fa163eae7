"""Captioners that write sentences, loaded by transformers from a local folder only."""

from __future__ import annotations

import shutil
import socket
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from lora_workbench.training.captions.vision_language import SentenceSettings, VisionLanguage
from lora_workbench.training.errors import UserError
from PIL import Image
from safetensors.torch import load_file, save_file
from support.captioners import (
    KNOWN,
    QUESTION_WORDS,
    tiny_blip,
    tiny_blip2,
    tiny_florence2,
    tiny_instructblip,
    tiny_llava,
    tiny_qwen_vl,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_blip(tmp_path_factory.mktemp("blip"))


@contextmanager
def on_cpu():
    yield torch.device("cpu")


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


def reweighted(folder: Path, change) -> None:
    """Change a model's weights, {name: tensor}, as a file of another model would."""
    file = folder / "model.safetensors"
    weights = change(load_file(file))
    save_file(weights, file, {"format": "pt"})


def captioner(folder: Path, **settings: object) -> VisionLanguage:
    return VisionLanguage(folder, SentenceSettings(**settings), lambda model: on_cpu)


def test_it_captions_without_the_network(folder, monkeypatch):
    def no_network(*_: object, **__: object) -> None:
        raise AssertionError("used the network")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    made = captioner(folder)
    assert made.caption([Image.new("RGB", (200, 100), color) for color in KNOWN]) == list(KNOWN.values())
    assert made.batch == 1


def test_a_prompt_that_is_completed_stays_in_the_caption(folder):
    assert captioner(folder, prompt="a photo").caption([Image.new("RGB", (32, 32), "#ff0000")]) == [
        "a photo of red cat"
    ]


def test_the_caption_of_a_chat_model_is_its_answer_alone(tmp_path):
    folder = tiny_llava(tmp_path)
    pictures = [Image.new("RGB", (40, 40), color) for color in KNOWN]
    question = " ".join(QUESTION_WORDS)
    assert captioner(folder, prompt=question).caption(pictures[:1]) == list(KNOWN.values())[:1]
    assert captioner(folder, prompt=question, batch_size=2).caption(pictures) == list(KNOWN.values())
    # Templates that take the question as a string and add the picture themselves, like JoyCaption's.
    shown = "USER: <image> {{ m['content'] }} ASSISTANT:"
    joined = "{{ 'USER: <image> ' + m['content'] + ' ASSISTANT:' }}"
    for talk in (shown, joined):
        (folder / "chat_template.jinja").write_text("{% for m in messages %}" + talk + "{% endfor %}")
        assert captioner(folder, prompt=question).caption(pictures) == list(KNOWN.values())


@pytest.mark.parametrize(
    ("make", "prompts"),
    [
        (tiny_qwen_vl, [""]),
        (tiny_florence2, [""]),
        (tiny_blip2, ["", " ".join(QUESTION_WORDS)]),
        (tiny_instructblip, [""]),
    ],
)
def test_every_kind_writes_the_caption_and_nothing_else(tmp_path, make, prompts):
    folder = make(tmp_path)
    # Qwen-VL's question has more tokens for the larger picture, so the other one is padded.
    pictures = [Image.new("RGB", (side, side), color) for side, color in zip((16, 32), KNOWN, strict=True)]
    for prompt in prompts:
        assert captioner(folder, prompt=prompt).caption(pictures[:1]) == list(KNOWN.values())[:1]
        assert captioner(folder, prompt=prompt, batch_size=2).caption(pictures) == list(KNOWN.values())


def test_max_tokens_limits_captions(folder):
    assert len(captioner(folder, max_tokens=8).caption([Image.new("RGB", (32, 32), "#ff0000")])[0].split()) <= 8


def test_the_identity_follows_files_and_settings(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copy2)
    one = captioner(folder).identity
    assert one == captioner(copy).identity != captioner(folder, prompt="a").identity
    assert captioner(copy, batch_size=4).identity == one, "the batch size does not change captions"
    (copy / "config.json").write_text((copy / "config.json").read_text() + "\n")
    assert captioner(copy).identity != one


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no .safetensors file"),
        (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), "can run code"),
        (lambda folder: [file.unlink() for file in folder.glob("*token*")], "has no tokenizer"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}'), "cannot be loaded"),
        (lambda folder: cut(folder / "model.safetensors"), "cannot be loaded"),
        (lambda folder: reweighted(folder, lambda of: dict(sorted(of.items())[:3])), r"lacks \d\d of its weights"),
        (lambda folder: reweighted(folder, lambda of: {n: t[..., :1] * 1 for n, t in of.items()}), "cannot be loaded"),
    ],
)
def test_an_incomplete_folder_is_named(folder, tmp_path, harm, words):
    broken = shutil.copytree(folder, tmp_path / "broken")
    harm(broken)
    with pytest.raises(UserError, match=words):
        captioner(broken).caption([Image.new("RGB", (32, 32))])
