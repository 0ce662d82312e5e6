"""Parts of vLLM's chat route by themselves: prepare a conversation, and prefill it without using an answer."""

from __future__ import annotations

from typing import Any


async def prepare_chat(handler: Any, request: Any, prefilled: bool) -> Any:
    """Check and prepare a chat request as vLLM's chat route does.

    Args:
        handler: vLLM's `OpenAIServingChat`.
        request: vLLM's `ChatCompletionRequest`.
        prefilled: whether the engine is to see the prompt. Otherwise the cache that front end and engine keep in step
            is left out, as the engine would miss what the front end takes for sent.

    Returns:
        The prepared prompt, or vLLM's `ErrorResponse`.
    """
    problem = await handler._check_model(request)
    if problem is not None:
        return problem
    handler._preflight(1)
    result = await handler.online_renderer.render_chat(request, skip_mm_cache=not prefilled)
    if not isinstance(result, tuple):
        return result
    (prompt,) = result[1]
    return prompt


async def prefill(handler: Any, request: Any, raw_request: Any, prompt: Any, request_id: str) -> None:
    """Have the engine encode the media of a prompt and prefill it.

    vLLM encodes while it prefills, and has no request that ends before a token is sampled: the one token is dropped.

    Args:
        handler, request: as of `prepare_chat`.
        raw_request: the HTTP request, for its headers.
        prompt: result of `prepare_chat`.
        request_id: for the engine.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    params = SamplingParams(max_tokens=1, temperature=0, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY)
    outputs = handler.engine_client.generate(
        prompt,
        params,
        request_id,
        lora_request=handler._maybe_get_adapters(request, supports_default_mm_loras=True),
        trace_headers=await handler._get_trace_headers(raw_request.headers),
        priority=handler._get_priority(request, raw_request),
        data_parallel_rank=handler._get_data_parallel_rank(raw_request),
    )
    async for _ in outputs:
        pass
