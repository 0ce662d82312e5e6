"""kvpress under transformers, run by `benchmarks.peers` with an interpreter of its own.

`kvpress_child.py JOB RESULT`: the job names a checkpoint, presses, the share kept and requests; the result has an
answer and the seconds of each. The first token of an answer comes from the full prefill, so it is given: a line break,
as in the requests that ours is asked.
"""

from __future__ import annotations

import base64
import importlib
import io
import json
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image

# By name, as it is no dependency of this project: it cannot share an environment with vLLM.
kvpress: Any = importlib.import_module("kvpress")
WINDOW = 8


class RotatedSnapKV(kvpress.SnapKVPress):  # type: ignore[misc]
    """SnapKV for models with three rotary angles per token, of which kvpress expects one.

    Attributes:
        sections: how many of the rotary dimensions each of the three has.
    """

    sections: tuple[int, ...] = ()

    def score(self, module: Any, hidden_states: Any, keys: Any, values: Any, attentions: Any, kwargs: Any) -> Any:
        """The parent's, with the angles that each dimension is rotated by."""
        angles = tuple(self._merged(one) for one in kwargs["position_embeddings"])
        return super().score(module, hidden_states, keys, values, attentions, {**kwargs, "position_embeddings": angles})

    def _merged(self, angles: Any) -> Any:
        parts = angles.split([*self.sections, *self.sections], dim=-1)
        return torch.cat([part[i % 3] for i, part in enumerate(parts)], dim=-1)


def press(name: str, keep: float, model: Any) -> Any:
    """A context manager factory by the name that ours has for the same method; None for no press."""
    if name == "none":
        return None
    if name == "snapkv":
        one = RotatedSnapKV(1 - keep, window_size=WINDOW)
        one.sections = tuple(model.config.text_config.rope_parameters["mrope_section"])
        return one
    return {"knorm": kvpress.KnormPress, "keydiff": kvpress.KeyDiffPress}[name](1 - keep)


def inputs_of(processor: Any, messages: list[dict[str, Any]]) -> Any:
    """Tensors of an OpenAI chat with data URLs."""
    images, chat = [], []
    for message in messages:
        whole, content = message["content"], []
        parts = whole if isinstance(whole, list) else [{"type": "text", "text": whole}]
        for part in parts:
            if part["type"] == "image_url":
                data = base64.b64decode(part["image_url"]["url"].partition(",")[2])
                images.append(Image.open(io.BytesIO(data)).convert("RGB"))
                content.append({"type": "image"})
            else:
                content.append(part)
        chat.append({"role": message["role"], "content": content})
    text = processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    return processor(text=[text], images=images, return_tensors="pt")


@torch.inference_mode()
def answer(model: Any, processor: Any, one: Any, messages: list[dict[str, Any]], tokens: int) -> tuple[str, float]:
    """Greedy answer behind a line break, and the seconds from the messages to it."""
    started = time.perf_counter()
    inputs = inputs_of(processor, messages)
    tokenizer = processor.tokenizer
    (token,) = tokenizer.encode("\n", add_special_tokens=False)
    length = inputs["input_ids"].shape[1]
    with nullcontext() if one is None else one(model):
        prefilled = model(**inputs, use_cache=True, cache_position=torch.arange(length))
    cache, delta, found = prefilled.past_key_values, int(model.model.rope_deltas), []
    for step in range(tokens):
        place = torch.full((3, 1, 1), length + step + delta)
        output = model(
            input_ids=torch.tensor([[token]]), past_key_values=cache, position_ids=place, use_cache=True,
            cache_position=torch.tensor([length + step]),
        )  # fmt: skip
        token = int(output.logits[0, -1].argmax())
        if token == tokenizer.eos_token_id:
            break
        found.append(token)
    return tokenizer.decode(found).strip(), time.perf_counter() - started


def main(job_file: str, result_file: str) -> None:
    """Answer every request with every press, which take turns."""
    job = json.loads(Path(job_file).read_text())
    torch.set_num_threads(job["threads"])
    model: Any = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(job["checkpoint"], dtype=torch.float32)
    processor = transformers.AutoProcessor.from_pretrained(job["checkpoint"])
    presses = {name: press(name, job["keep"], model.eval()) for name in job["presses"]}
    rows: dict[str, list[tuple[str, float]]] = {name: [] for name in presses}
    for number, messages in enumerate(job["requests"]):
        for name, one in presses.items():
            rows[name].append(answer(model, processor, one, messages, job["tokens"]))
        if number % 20 == 19:
            print(f"{number + 1} of {len(job['requests'])} requests", file=sys.stderr, flush=True)
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    Path(result_file).write_text(json.dumps({"rows": rows, "versions": versions}))


if __name__ == "__main__":
    main(*sys.argv[1:])
