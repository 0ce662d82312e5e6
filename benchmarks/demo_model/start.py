"""Begin a run with what an earlier checkpoint knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def borrow(model: Any, words: Any, folder: Path) -> list[str]:
    """Copy the weights of an earlier checkpoint that fit.

    Args:
        model: the new model.
        words: its tokenizer; rows of the embedding and of the head are taken token by token, by their text.
        folder: the earlier checkpoint.

    Returns:
        Names of the parameters that were taken.
    """
    from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

    old = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).state_dict()
    known = AutoTokenizer.from_pretrained(folder).get_vocab()
    pairs = [(now, known[text]) for text, now in words.get_vocab().items() if text in known]
    taken = []
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if "embed_tokens" in name or "lm_head" in name:
                value[[now for now, _ in pairs]] = old[name][[before for _, before in pairs]]
            elif name in old and old[name].shape == value.shape:
                value.copy_(old[name])
            else:
                continue
            taken.append(name)
    return taken
