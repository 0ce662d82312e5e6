"""An InternVL checkpoint with random weights: a family with one position per token, to measure what three rows cost."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from .random_model import lay_out

TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
TILE, SIDE = 448, 14
"""Pixels of a tile and of a patch; 256 visual tokens per tile."""
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{m['role']}}\n{% if m['content'] is string %}{{m['content']}}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<IMG_CONTEXT>{% else %}{{c['text']}}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)


def build(folder: Path | None = None, layers: int = 12, hidden: int = 768) -> Path:
    """Write the checkpoint once and return its folder; arguments as for `random_model.build`."""
    import torch
    from transformers import InternVLForConditionalGeneration

    folder = folder or Path(tempfile.gettempdir()) / f"vllm-prune-random-internvl-{layers}x{hidden}"
    if (folder / "done").exists():
        return folder
    lay_out(folder)
    context = _processors(folder)
    torch.manual_seed(0)
    model = InternVLForConditionalGeneration(_config(context, layers, hidden)).to(torch.bfloat16)
    model.save_pretrained(folder)
    (folder / "done").write_text(json.dumps({"parameters": sum(p.numel() for p in model.parameters())}))
    return folder


def _processors(folder: Path) -> int:
    """Write tokenizer and processors; the id of the token that an embedding takes."""
    from transformers import AutoTokenizer, GotOcr2ImageProcessor, InternVLProcessor, InternVLVideoProcessor

    settings = folder / "tokenizer_config.json"
    named = {**json.loads(settings.read_text()), **TOKENS, "extra_special_tokens": TOKENS}
    settings.write_text(json.dumps(named | {"processor_class": "InternVLProcessor"}))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens(
        {"additional_special_tokens": list(TOKENS.values())}, replace_extra_special_tokens=False
    )
    size = {"height": TILE, "width": TILE}
    InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size=size, crop_to_patches=True, min_patches=1, max_patches=6),
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(size=size),
        image_seq_length=(TILE // SIDE // 2) ** 2,
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    saved = json.loads(settings.read_text())
    settings.write_text(json.dumps({**saved, **TOKENS, "extra_special_tokens": TOKENS}))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return int(tokenizer.convert_tokens_to_ids(TOKENS["context_image_token"]))


def _config(context: int, layers: int, hidden: int) -> Any:
    from transformers import InternVLConfig

    text = {"model_type": "qwen2", "vocab_size": context + 64, "hidden_size": hidden, "intermediate_size": 4 * hidden}
    text |= {"num_hidden_layers": layers, "num_attention_heads": hidden // 64, "num_key_value_heads": hidden // 256}
    text |= {"max_position_embeddings": 32768, "tie_word_embeddings": False}
    tower = {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 2048}
    return InternVLConfig(
        text_config=text,
        vision_config={**tower, "image_size": [TILE, TILE], "patch_size": [SIDE, SIDE]},
        image_token_id=context,
        image_seq_length=(TILE // SIDE // 2) ** 2,
        downsample_ratio=0.5,
        tie_word_embeddings=False,
    )
