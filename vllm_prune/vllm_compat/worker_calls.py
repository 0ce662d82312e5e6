"""Calls of our worker extension from the front end."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..request import RequestContext

_LOG = logging.getLogger("vllm.vllm_prune")
KEPT_SECONDS = 20.0


async def call_workers(engine_client: Any, method: str, *args: Any) -> list[Any]:
    """Results of a method of `WorkerInspection`, one per worker of every engine that this front end sends requests to.

    vLLM's own `collective_rpc` answers for the first engine alone where there are several (data parallelism).
    """
    call_all = getattr(engine_client.engine_core, "call_utility_all_async", None)
    if call_all is None:
        return list(await engine_client.collective_rpc(method, args=args))
    per_engine = await call_all("collective_rpc", method, None, args, None)
    return [result for results in per_engine for result in results]


async def fetch_kept(engine_client: Any, context: RequestContext) -> None:
    """Complete the kept tokens of a request's media items, as far as its answer is to name them.

    Items that no worker remembers, and all of them when no worker answers in time, are left unknown.
    """
    keys = context.unknown_kept()
    if not keys:
        return
    try:
        async with asyncio.timeout(KEPT_SECONDS):
            per_worker = await call_workers(engine_client, "vllm_prune_kept", keys)
    except Exception:
        # The answer itself is complete; without it the client would lose what it has paid for.
        _LOG.exception("the workers could not say which tokens were kept of request %s", context.request_id)
        return
    known: dict[str, str | None] = {}
    for bitmaps in per_worker:
        for key, kept in zip(keys, bitmaps, strict=True):
            known[key] = known.get(key) or kept
    context.record_kept(known)
