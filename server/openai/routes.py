"""What the `pruning` field means on each route that takes a body.

Every route honours a budget or refuses it. A test walks the routes of the running application, so that one which a
new vLLM adds has to be entered here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

Usage = Literal["usage", "top", "header"]
"""Where the report goes: into `usage` objects, beside the token count of an answer without one, into a header."""

USAGE_HEADER = b"x-pruning-usage"
"""Header with `usage.pruning` as JSON, on routes whose answer is another route's request."""


@dataclass(frozen=True)
class Route:
    """One route.

    Attributes:
        visual: it prepares media, so that `pruning.visual` can be honoured.
        kv: it decodes, or counts for a route that does, so that `pruning.kv` can be honoured.
        generates: its requests hold KV cache while they decode.
        media_param: request field that holds media.
        usage: where the report goes, None where nothing is reported.
        form: its body is a form, not JSON.
        most_output: output tokens that the route itself allows, None where requests say how many.
        id_from_header: vLLM makes the ids of its engine requests from `X-Request-Id`.
        prompts: request fields that hold its prompts. vLLM ignores every other field, so that those of other routes
            must not be read on this one.
        output_limits: request fields that bound the length of an answer.
    """

    visual: bool = False
    kv: bool = False
    generates: bool = False
    media_param: str = "messages"
    usage: Usage | None = None
    form: bool = False
    most_output: int | None = None
    id_from_header: bool = True
    prompts: tuple[str, ...] = ("messages",)
    output_limits: tuple[str, ...] = ("max_completion_tokens", "max_tokens")

    @property
    def honours(self) -> bool:
        """Whether any part of the field is honoured."""
        return self.visual or self.kv

    @property
    def rendered(self) -> bool:
        """Whether its prompts come as token ids that another route has rendered."""
        return "token_ids" in self.prompts


REFUSING = Route(id_from_header=False)
"""Any route that is not listed, and those that can do nothing with a budget."""

_GENERATING = Route(visual=True, kv=True, generates=True, usage="usage")
_TEXTS = ("prompt", "prompt_embeds")
_COMPLETING = replace(_GENERATING, media_param="prompt", prompts=_TEXTS, output_limits=("max_tokens",))
_RESPONDING = replace(
    _GENERATING, media_param="input", id_from_header=False, prompts=("input",), output_limits=("max_output_tokens",)
)
_RENDERED = replace(
    _GENERATING, media_param="content_parts", prompts=("token_ids", "content_parts"), output_limits=("max_tokens",)
)
_MAX_TOKENS_ONLY = replace(_GENERATING, output_limits=("max_tokens",))
_COUNTING = Route(visual=True, kv=True, usage="top")
_RENDERING = Route(visual=True, usage="header")
_SPEECH = Route(kv=True, generates=True, media_param="file", usage="usage", form=True)

HONOURING: Mapping[str, Route] = {
    "/v1/chat/completions": _GENERATING,
    "/v1/chat/completions/batch": _GENERATING,
    "/v1/completions": _COMPLETING,
    "/v1/responses": _RESPONDING,
    "/v1/messages": _MAX_TOKENS_ONLY,
    "/v1/messages/count_tokens": _COUNTING,
    "/invocations": replace(_GENERATING, prompts=("messages", *_TEXTS)),
    "/tokenize": replace(_COUNTING, prompts=("messages", "prompt")),
    "/inference/v1/generate": _RENDERED,
    "/v1/chat/completions/render": _RENDERING,
    "/v1/completions/render": replace(_RENDERING, media_param="prompt", prompts=_TEXTS),
    "/v1/responses/render": replace(_RENDERING, media_param="input", id_from_header=False, prompts=("input",)),
    "/v1/messages/render": _RENDERING,
    "/cohere/v2/chat": _MAX_TOKENS_ONLY,
    "/cohere/v2/chat/render": _RENDERING,
    "/v1/pruning/preview": Route(visual=True, kv=True, generates=True, most_output=1, id_from_header=False),
    "/v1/audio/transcriptions": _SPEECH,
    "/v1/audio/translations": _SPEECH,
}
"""Routes that honour the field, by path."""

REFUSED: frozenset[str] = frozenset(
    {
        # Nothing is prefilled.
        "/detokenize",
        "/v1/chat/completions/derender",
        "/v1/completions/derender",
        "/v1/responses/{response_id}/cancel",
        "/inference/v1/abort_requests",
        "/abort_requests",
        # Pooling and scoring, of models that do not decode or of prompts that are read once.
        "/pooling",
        "/classify",
        "/score",
        "/v1/score",
        "/rerank",
        "/v1/rerank",
        "/v2/rerank",
        "/v1/embeddings",
        "/v2/embed",
        "/generative_scoring",
        "/v1/systemone",
        "/v1/decisions",
        # The server's own management.
        "/ping",
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/start_profile",
        "/stop_profile",
        "/reset_prefix_cache",
        "/reset_mm_cache",
        "/reset_encoder_cache",
        "/collective_rpc",
        "/sleep",
        "/release_kv_cache_memory",
        "/wake_up",
        "/scale_elastic_ep",
        "/is_scaling_elastic_ep",
        "/fault_tolerance/apply",
        "/pause",
        "/resume",
        "/init_weight_transfer_engine",
        "/shutdown_weight_transfer_engine",
        "/start_weight_update",
        "/start_draft_weight_update",
        "/update_weights",
        "/finish_weight_update",
        "/update_weight_version",
        "/weight_checker",
    }
)
"""Known routes on which a budget is refused."""

WORKING = (
    "/v1/",
    "/v2/",
    "/inference/",
    "/cohere/",
    "/generative_scoring",
    "/pooling",
    "/classify",
    "/score",
    "/rerank",
)
LIGHT = ("/cancel", "/abort_requests", "/derender", "_lora_adapter")


def route_of(path: str) -> Route:
    """What is known of the route at a path."""
    return HONOURING.get(path, REFUSING)


def is_admitted(path: str) -> bool:
    """Whether requests to a path take room, as they make the engine or the processor work."""
    return path in HONOURING or (path.startswith(WORKING) and not path.endswith(LIGHT))
