"""Real captioners small enough to be trained in seconds, one for each way of asking a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lora_workbench.training.captions.vision_language import QUESTION
from PIL import Image

KNOWN = {"#ff0000": "a photo of red cat", "#0000ff": "a blue dog"}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "a", "photo", "of", "red", "cat", "blue", "dog"]


QUESTION_WORDS = ["what", "is", "it"]
_OWN_QUESTION = " ".join(QUESTION_WORDS)
_SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
_SIZE = {"height": 32, "width": 32}
# As Qwen2-VL's, without its videos.
_QWEN_TEMPLATE = """\
{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}<|im_end|>
{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' or 'image' in content %}\
<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}\
<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def tiny_blip(folder: Path, steps: int = 150) -> Path:
    """Train it on plain colours and save it as transformers does; returns the folder."""
    from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

    torch.manual_seed(0)
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    # A file is ignored by transformers 5, and every word would be unknown.
    tokenizer = BertTokenizer(vocab=vocabulary, bos_token="[DEC]")
    processor = BlipProcessor(BlipImageProcessor(size=_SIZE), tokenizer)
    config = BlipConfig(
        text_config={**_SMALL, "encoder_hidden_size": 32, "vocab_size": len(WORDS), "bos_token_id": vocabulary["[DEC]"],
                     "pad_token_id": 0, "eos_token_id": vocabulary["[SEP]"], "sep_token_id": vocabulary["[SEP]"],
                     "max_position_embeddings": 32, "projection_dim": 32},
        vision_config={**_SMALL, "image_size": 32, "patch_size": 8, "projection_dim": 32},
    )  # fmt: skip
    model = BlipForConditionalGeneration(config)
    tokens = tokenizer(list(KNOWN.values()), return_tensors="pt", padding=True)
    labels = tokens.input_ids.clone()
    labels[:, 0] = vocabulary["[DEC]"]  # what generation begins with
    pixels = processor(images=_pictures(), return_tensors="pt").pixel_values
    given = {"pixel_values": pixels, "input_ids": labels, "attention_mask": tokens.attention_mask}
    return _trained(model, processor, folder, steps, **given, labels=labels.masked_fill(labels == 0, -100))


def tiny_llava(folder: Path, steps: int = 120) -> Path:
    """The same of a chat model: asked "what is it" about a plain colour it answers with what is KNOWN."""
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    torch.manual_seed(0)
    tokenizer = _tokenizer("<image>", "USER:", "ASSISTANT:")
    template = (
        "{% for m in messages %}USER: {% for c in m['content'] %}{% if c['type'] == 'image' %}<image> "
        "{% else %}{{ c['text'] }} {% endif %}{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    )
    processor = LlavaProcessor(
        CLIPImageProcessor(size=_SIZE, crop_size=_SIZE), tokenizer, patch_size=8, image_token="<image>",
        vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template=template,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**_SMALL, image_size=32, patch_size=8, projection_dim=32),
        text_config=LlamaConfig(**_SMALL, **_numbers(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), vision_feature_layer=-1,
    )  # fmt: skip
    asked = f"USER: <image> {_OWN_QUESTION} ASSISTANT:"
    return _trained(LlavaForConditionalGeneration(config), processor, folder, steps, **_answers(processor, asked))


def tiny_qwen_vl(folder: Path, steps: int = 120) -> Path:
    """A Qwen2-VL: a picture's tokens are as many as its size asks for. Asked the pack's own question it answers."""
    from transformers import (
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
    )

    torch.manual_seed(0)
    marks = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>"]
    tokenizer = _tokenizer(*marks, eos="<|im_end|>")
    patches = {"patch_size": 8, "merge_size": 2, "min_pixels": 256, "max_pixels": 1024}
    processor = Qwen2VLProcessor(
        Qwen2VLImageProcessor(**patches), tokenizer, Qwen2VLVideoProcessor(**patches), chat_template=_QWEN_TEMPLATE
    )
    number = tokenizer.convert_tokens_to_ids
    config = Qwen2VLConfig(
        text_config={**_SMALL, **_numbers(tokenizer), "num_key_value_heads": 2,
                     "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}},
        vision_config={"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 8},
        image_token_id=number("<|image_pad|>"), video_token_id=number("<|video_pad|>"),
        vision_start_token_id=number("<|vision_start|>"), vision_end_token_id=number("<|vision_end|>"),
    )  # fmt: skip
    parts = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    asked = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
    given = _answers(processor, asked, pictures=[*_pictures(), *_pictures(16)])
    return _trained(Qwen2VLForConditionalGeneration(config), processor, folder, steps, **given)


def tiny_florence2(folder: Path, steps: int = 120) -> Path:
    """A Florence-2, which encodes picture and question and writes the answer apart from them."""
    from transformers import (
        BartConfig,
        CLIPImageProcessor,
        Florence2Config,
        Florence2ForConditionalGeneration,
        Florence2Processor,
    )

    torch.manual_seed(0)
    tokenizer = _tokenizer("<image>", extra_special_tokens={"image_token": "<image>"})
    images = CLIPImageProcessor(size=_SIZE, do_center_crop=False, image_seq_length=17)  # 4 x 4 and their mean
    processor = Florence2Processor(images, tokenizer)
    one = {name: [2] for name in ("num_heads", "num_groups")} | {"depths": [1], "embed_dim": [32]}
    config = Florence2Config(
        vision_config={**one, "patch_size": [8], "patch_stride": [8], "patch_padding": [0], "patch_prenorm": [False],
                       "window_size": 4, "projection_dim": 32},
        text_config=BartConfig(
            **_numbers(tokenizer), d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=64,
        ),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    given = processor(images=_pictures(), text=["<DETAILED_CAPTION>"] * len(KNOWN), return_tensors="pt")
    answers = [f"<s> {answer} </s>" for answer in KNOWN.values()]
    labels = tokenizer(answers, return_tensors="pt", padding=True).input_ids
    given["labels"] = labels.masked_fill(labels == 0, -100)
    return _trained(Florence2ForConditionalGeneration(config), processor, folder, steps, **given)


def tiny_blip2(folder: Path, steps: int = 120) -> Path:
    """A BLIP-2 over an OPT, which describes unasked and answers "what is it"."""
    from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2Processor, BlipImageProcessor

    torch.manual_seed(0)
    tokenizer = _tokenizer("<image>", begins=True)
    processor = Blip2Processor(BlipImageProcessor(size=_SIZE), tokenizer, num_query_tokens=4)
    model = Blip2ForConditionalGeneration(_querying(Blip2Config, tokenizer))
    return _trained(model, processor, folder, steps, **_answers(processor, "", _OWN_QUESTION))


def tiny_instructblip(folder: Path, steps: int = 120) -> Path:
    """An InstructBLIP, which has a second tokenizer for the question. Asked the pack's own it answers."""
    from transformers import (
        BlipImageProcessor,
        InstructBlipConfig,
        InstructBlipForConditionalGeneration,
        InstructBlipProcessor,
    )

    torch.manual_seed(0)
    tokenizer = _tokenizer("<image>", begins=True)
    processor = InstructBlipProcessor(
        BlipImageProcessor(size=_SIZE), tokenizer, _tokenizer("<image>"), num_query_tokens=4
    )
    model = InstructBlipForConditionalGeneration(_querying(InstructBlipConfig, tokenizer))
    given = _answers(processor, QUESTION)
    question = processor(text=[QUESTION] * len(KNOWN), return_tensors="pt")
    given |= {name: value for name, value in question.items() if "qformer" in name}  # it never sees the answers
    return _trained(model, processor, folder, steps, **given)


def _querying(config: Any, tokenizer: Any) -> Any:
    """The config of a BLIP-2 or of its kin."""
    from transformers import OPTConfig

    return config(
        vision_config={**_SMALL, "image_size": 32, "patch_size": 8, "initializer_range": 0.02},
        qformer_config={**_SMALL, "vocab_size": len(tokenizer), "cross_attention_frequency": 1},
        text_config=OPTConfig(
            **_numbers(tokenizer), hidden_size=32, ffn_dim=64, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=64,
        ),
        num_query_tokens=4, image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip


def _pictures(side: int = 32) -> list[Image.Image]:
    return [Image.new("RGB", (side, side), color) for color in KNOWN]


def _tokenizer(*marks: str, eos: str = "</s>", begins: bool = False, **options: Any) -> Any:
    """One that knows each word of the answers and questions as a token, and some marks.

    Args:
        *marks: Special tokens besides the usual ones.
        eos: Which of all ends an answer.
        begins: Whether it puts <s> before a text.
        **options: Of PreTrainedTokenizerFast.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<unk>", *marks]
    texts = [*KNOWN.values(), _OWN_QUESTION, QUESTION, "system user assistant You are a helpful assistant."]
    words = dict.fromkeys([*special, *" ".join(texts).split()])
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if begins:
        core.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token=eos, unk_token="<unk>",
        additional_special_tokens=list(marks), **options,
    )  # fmt: skip


def _numbers(tokenizer: Any) -> dict[str, int]:
    """What a language model's config says of its tokenizer."""
    names = ("pad_token_id", "bos_token_id", "eos_token_id")
    return {"vocab_size": len(tokenizer), **{name: getattr(tokenizer, name) for name in names}}


def _answers(processor: Any, *asked: str, pictures: list[Image.Image] | None = None) -> dict[str, Any]:
    """A batch in which each text that may be asked is followed by the KNOWN answer, which alone is to be learned."""
    pictures = pictures or _pictures()
    ends = [f" {answer} {processor.tokenizer.eos_token}" for answer in KNOWN.values()]
    ends *= len(pictures) // len(KNOWN)
    texts = [question + end for question in asked for end in ends]
    processor.tokenizer.padding_side = "left"  # so that all answers end together
    given = processor(images=pictures * len(asked), text=texts, return_tensors="pt", padding=True)
    processor.tokenizer.padding_side = "right"  # as many are saved
    labels = given["input_ids"].clone()
    for row, end in zip(labels, ends * len(asked), strict=True):
        row[: -len(end.split())] = -100
    return {**given, "labels": labels}


def _trained(model: Any, processor: Any, folder: Path, steps: int, **given: Any) -> Path:
    """Train a model on one batch and save it with its processor."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    model.eval()  # without dropout
    for _ in range(steps):
        loss = model(**given).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
