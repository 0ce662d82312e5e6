"""Whatever JSON a client sends, the steps before vLLM's routes pass it on or refuse it; without an engine."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_prune.config.load import PruneConfig
from vllm_prune_server.openai.routes import HONOURING

from .application import Served

pytestmark = pytest.mark.slow

CONFIG = PruneConfig.model_validate(
    {"admission": {"max_inflight_visual_tokens": 1000, "max_inflight_kv_rows": 10_000}, "limits": {"min_keep": 0.1}}
)
PATHS = sorted(path for path, route in HONOURING.items() if not route.form)
KEYS = [
    "model",
    "messages",
    "input",
    "prompt",
    "prompt_embeds",
    "token_ids",
    "content_parts",
    "sampling_params",
    "content",
    "output",
    "role",
    "type",
    "url",
    "image_url",
    "video_url",
    "input_audio",
    "image",
    "source",
    "data",
    "detail",
    "uuid",
    "n",
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "stream",
    "use_beam_search",
    "previous_response_id",
    "request_id",
    "background",
    "vllm_xargs",
    "pruning",
    "visual",
    "kv",
    "keep",
    "strategy",
    "options",
]
WORDS = ["demo", "demo@x", "user", "message", "text", "image", "image_url", "input_image", "function_call_output", "3"]
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(WORDS) | st.text(max_size=3)
NODES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=6),
    max_leaves=25,
)
SMALL = SCALARS | st.lists(SCALARS, max_size=2) | st.dictionaries(st.sampled_from(KEYS), SCALARS, max_size=2)
PARTS = st.dictionaries(st.sampled_from(["type", "text", "url", "source", "image_url", "detail", "uuid"]), SMALL)
MESSAGES = st.fixed_dictionaries(
    {}, optional={"role": SMALL, "type": SMALL, "content": st.lists(PARTS), "output": PARTS}
)
DOCUMENTS = st.builds(
    lambda document, prompts: {**document, **prompts},
    st.dictionaries(st.sampled_from(KEYS), NODES, max_size=6),
    st.fixed_dictionaries({}, optional={name: st.lists(MESSAGES | SMALL) for name in ("messages", "input")}),
)


def test_no_document_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    served = Served(CONFIG, None, monkeypatch)
    ledger = served.state.ledger

    @settings(max_examples=500, deadline=None)
    @given(document=DOCUMENTS, path=st.sampled_from(PATHS))
    def check(document: Any, path: str) -> None:
        answer = served.post(path, content=json.dumps(document), headers={"content-type": "application/json"})
        assert answer.status_code in (200, 400), answer.text
        assert (ledger.total.requests, ledger.total.visual, ledger.total.rows, ledger.waiting) == (0, 0, 0, [])

    check()
