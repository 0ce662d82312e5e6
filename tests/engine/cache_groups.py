"""Models with several cache groups: tiny checkpoints, their oracles, and requests that are longer than some blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import media
from .checkpoints import byte_tokenizer
from .eviction import free_blocks, scheduler_of
from .families import recipes
from .media import Request
from .oracle import Evict, Expected, greedy

WINDOW = 64
"""Tokens that a layer with a sliding window sees."""


def gemma3_text(tokenizer: Any, folder: Path) -> Any:
    """Gemma 3 without its tower: three layers with a sliding window, then one of full attention."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    kinds = ["sliding_attention"] * 3 + ["full_attention"]
    more = {"head_dim": 64, "num_hidden_layers": 4, "sliding_window": WINDOW, "layer_types": kinds}
    more |= {"query_pre_attn_scalar": 64, "pad_token_id": 0, "tie_word_embeddings": False}
    return Gemma3ForCausalLM(Gemma3TextConfig(**recipes._text_config(tokenizer, {}, **more)))


def build_gemma3_text(folder: Path) -> Path:
    """Write the checkpoint into a new folder."""
    return recipes.build(gemma3_text, (), folder)


class TextOracle:
    """transformers' model of a checkpoint without media.

    Args:
        path: the checkpoint.
    """

    def __init__(self, path: Path) -> None:
        from transformers import AutoModelForCausalLM

        self.hf: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        self.tokenizer = byte_tokenizer(())

    @torch.no_grad()
    def answer(self, request: Request, steps: int, evict: Evict | None = None) -> Expected:
        """Expected answer of `steps` tokens; `evict` shortens the cache before each decoding step."""
        from transformers.cache_utils import DynamicCache

        prompt = self.tokenizer(request.prompt).input_ids
        cache = DynamicCache(config=self.hf.config)

        def scores_behind(tokens: Sequence[int]) -> torch.Tensor:
            step, positions = torch.tensor([prompt]), torch.arange(len(prompt))[None]
            if tokens:
                step, positions = torch.tensor([tokens[-1:]]), torch.tensor([[len(prompt) + len(tokens) - 1]])
                if evict is not None:
                    evict(cache.layers, len(prompt) + len(tokens) - 1)
            return self.hf(input_ids=step, position_ids=positions, past_key_values=cache).logits[0, -1]

        return Expected(tuple(prompt), *greedy(steps, scores_behind), len(prompt), ())


def text_requests() -> list[Request]:
    """Prompts of 100 to 500 tokens, three of which begin alike."""
    common = "".join(chr(97 + i * i % 23) for i in range(200))
    lengths = (300, 200, 100)
    texts = [common + "".join(chr(65 + (i * i + j) % 57) for i in range(n)) for j, n in enumerate(lengths)]
    texts += ["".join(chr(48 + (i * i * (i % 5) + j) % 74) for i in range(n)) for j, n in enumerate((410, 100))]
    return [Request(text) for text in texts]


def media_requests() -> list[Request]:
    """Prompts of Qwen3.5 with 250 to 550 tokens, with and without a visual budget."""
    pictures = [media.image(6 * 32, 7 * 32, seed) for seed in range(3)]
    clip = media.video(6, 4 * 32, 5 * 32, seed=5)
    half, long = {"strategy": "uniform", "keep": 0.5}, "what is it? " * 30
    return [
        media.ask(*pictures, question=long),
        media.ask(*pictures, visual=half, question=long),
        media.ask(pictures[0], clip, question=long),
        media.ask(clip, pictures[1], visual=half, question=long[:200]),
        media.ask(pictures[2], question=long[:200]),
    ]


def managers(llm: Any) -> tuple[Any, ...]:
    """Block managers of an engine, one per cache group."""
    return scheduler_of(llm).kv_cache_manager.coordinator.single_type_managers


def was_compacted(scheduler: Any, request: Any) -> bool:
    """Whether a request has lost rows."""
    return request.request_id in scheduler.compacting.evicted


@contextmanager
def preemptions(llm: Any, noted: Callable[[Any, Any], Any] = was_compacted) -> Iterator[list[Any]]:
    """Record of every request that is preempted what `noted` says of the scheduler and it; no trace of it stays."""
    scheduler, record = scheduler_of(llm), list[Any]()
    original = scheduler._preempt_request

    def preempt(request: Any, *args: Any, **kwargs: Any) -> Any:
        record.append(noted(scheduler, request))
        result = original(request, *args, **kwargs)
        assert not was_compacted(scheduler, request)
        return result

    scheduler._preempt_request = preempt
    try:
        yield record
    finally:
        del scheduler._preempt_request


def run_with_aborts(llm: Any, every: int, per_request: int) -> None:
    """Run what was added, and now and then abort a request.

    Args:
        llm: the engine; its requests are named r0, r1 and so on.
        every: steps between aborts.
        per_request: steps after which the next number is the one aborted.
    """
    engine = llm.llm_engine
    for step in range(5000):
        if not engine.has_unfinished_requests():
            break
        engine.step()
        if step % every == every - 1:
            engine.abort_request([f"r{step // per_request}"])
    assert not engine.has_unfinished_requests()


def assert_nothing_left(llm: Any, before: int) -> None:
    """Whether all requests have given back what they held.

    Args:
        llm: the engine.
        before: free blocks before them.
    """
    assert free_blocks(llm) == before
    assert scheduler_of(llm).compacting.evicted == {}
    assert not any(manager.req_to_blocks for manager in managers(llm))


@dataclass
class Lookup:
    """The longest prefix of a request that each cache group has, in tokens, and what they agree on."""

    prompt: int
    per_group: tuple[int, ...]
    hit: int


@contextmanager
def lookups(llm: Any) -> Iterator[list[Lookup]]:
    """Record what each waiting request finds in the prefix cache."""
    scheduler, recorded = scheduler_of(llm), []
    original = scheduler._get_local_prefix_cache_hit

    def look_up(request: Any, *args: Any, **kwargs: Any) -> Any:
        coordinator = scheduler.kv_cache_manager.coordinator
        _, each = coordinator.find_longest_cache_hit_per_group(request.block_hashes, request.num_tokens - 1)
        result = original(request, *args, **kwargs)
        recorded.append(Lookup(request.num_tokens, each, result[1]))
        return result

    scheduler._get_local_prefix_cache_hit = look_up
    try:
        yield recorded
    finally:
        del scheduler._get_local_prefix_cache_hit


def zeroes(llm: Any) -> bool:
    """Whether vLLM zeroes blocks before they are used, as they may have held something else than rows."""
    return bool(scheduler_of(llm).kv_cache_manager.kv_cache_config.needs_kv_cache_zeroing)


def fill_with_nan(runner: Any) -> None:
    """Let every byte of the caches read as NaN, as what another cache group has left in a block may."""
    for layer in runner.compilation_config.static_forward_context.values():
        caches = getattr(layer, "kv_cache", None)
        for cache in caches if isinstance(caches, list | tuple) else [caches]:
            if cache is not None:
                cache.fill_(float("nan"))
