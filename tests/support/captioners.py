"""Real captioners small enough to be trained in seconds: a BLIP that completes, a LLaVA that answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image

KNOWN = {"#ff0000": "a photo of red cat", "#0000ff": "a blue dog"}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "a", "photo", "of", "red", "cat", "blue", "dog"]


QUESTION_WORDS = ["what", "is", "it"]


def tiny_blip(folder: Path, steps: int = 150) -> Path:
    """Train it on plain colours and save it as transformers does; returns the folder."""
    from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

    torch.manual_seed(0)
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    # A file is ignored by transformers 5, and every word would be unknown.
    tokenizer = BertTokenizer(vocab=vocabulary, bos_token="[DEC]")
    processor = BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BlipConfig(
        text_config={**small, "encoder_hidden_size": 32, "vocab_size": len(WORDS), "bos_token_id": vocabulary["[DEC]"],
                     "pad_token_id": 0, "eos_token_id": vocabulary["[SEP]"], "sep_token_id": vocabulary["[SEP]"],
                     "max_position_embeddings": 32, "projection_dim": 32},
        vision_config={**small, "image_size": 32, "patch_size": 8, "projection_dim": 32},
    )  # fmt: skip
    model = BlipForConditionalGeneration(config)
    pictures = [Image.new("RGB", (32, 32), color) for color in KNOWN]
    tokens = tokenizer(list(KNOWN.values()), return_tensors="pt", padding=True)
    labels = tokens.input_ids.clone()
    labels[:, 0] = vocabulary["[DEC]"]  # what generation begins with
    pixels = processor(images=pictures, return_tensors="pt").pixel_values
    given = {"pixel_values": pixels, "input_ids": labels, "attention_mask": tokens.attention_mask}
    return _trained(model, processor, folder, steps, **given, labels=labels.masked_fill(labels == 0, -100))


def tiny_llava(folder: Path, steps: int = 120) -> Path:
    """The same of a chat model: asked "what is it" about a plain colour it answers with what is KNOWN."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    torch.manual_seed(0)
    special = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "USER:", "ASSISTANT:"]
    words = [*special, *dict.fromkeys(" ".join(KNOWN.values()).split()), *QUESTION_WORDS]
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        additional_special_tokens=["<image>", "USER:", "ASSISTANT:"],
    )  # fmt: skip
    template = (
        "{% for m in messages %}USER: {% for c in m['content'] %}{% if c['type'] == 'image' %}<image> "
        "{% else %}{{ c['text'] }} {% endif %}{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    )
    size = {"height": 32, "width": 32}
    processor = LlavaProcessor(
        CLIPImageProcessor(size=size, crop_size=size), tokenizer, patch_size=8, image_token="<image>",
        vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template=template,
    )  # fmt: skip
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**small, image_size=32, patch_size=8, projection_dim=32),
        text_config=LlamaConfig(**small, vocab_size=len(words), pad_token_id=0, bos_token_id=1, eos_token_id=2),
        image_token_index=words.index("<image>"), vision_feature_layer=-1,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config)
    pictures = [Image.new("RGB", (32, 32), color) for color in KNOWN]
    asked = f"USER: <image> {' '.join(QUESTION_WORDS)} ASSISTANT:"
    texts = [f"{asked} {answer} </s>" for answer in KNOWN.values()]
    tokenizer.padding_side = "right"
    given = processor(images=pictures, text=texts, return_tensors="pt", padding=True)
    question = processor(images=pictures[:1], text=[asked], return_tensors="pt").input_ids.shape[1]
    labels = given.input_ids.masked_fill(given.attention_mask == 0, -100)
    labels[:, :question] = -100
    return _trained(model, processor, folder, steps, **given, labels=labels)


def _trained(model: Any, processor: Any, folder: Path, steps: int, **given: Any) -> Path:
    """Train a model on one batch and save it with its processor."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(steps):
        loss = model(**given).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
