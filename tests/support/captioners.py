"""A real captioner small enough to be trained in a second: a BLIP of 32 pixels that knows two things."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

KNOWN = {"#ff0000": "a photo of red cat", "#0000ff": "a blue dog"}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "a", "photo", "of", "red", "cat", "blue", "dog"]


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
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(steps):
        shown = labels.masked_fill(labels == 0, -100)
        loss = model(pixel_values=pixels, input_ids=labels, attention_mask=tokens.attention_mask, labels=shown).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
