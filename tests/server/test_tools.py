"""Tool calls through the unmodified OpenAI SDK, with a budget."""

from __future__ import annotations

import json
from typing import Any

import openai

from .media_files import image_part, png, user

CLICK = {
    "type": "function",
    "function": {
        "name": "click",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"mark": {"type": "string", "enum": ["a", "b", "c"]}},
            "required": ["mark"],
            "additionalProperties": False,
        },
    },
}
BUDGET = {"visual": {"keep": 0.5, "strategy": "uniform"}}


def call(client: openai.OpenAI, model: str, **more: Any) -> Any:
    # The grammar leaves spaces free, and a model that knows no JSON would write them for ever without a penalty.
    return client.chat.completions.create(
        model=model, messages=user([image_part(png(112, 140))], "click save"), tools=[CLICK], temperature=0,
        frequency_penalty=2.0, max_tokens=400, extra_body={"pruning": BUDGET}, **more,
    )  # fmt: skip


def test_a_tool_call_and_its_stream(client: openai.OpenAI, model: str) -> None:
    for choice in ({"type": "function", "function": {"name": "click"}}, "required"):
        answer = call(client, model, tool_choice=choice)
        (made,) = answer.choices[0].message.tool_calls
        assert made.function.name == "click"
        assert json.loads(made.function.arguments)["mark"] in ("a", "b", "c")
        assert answer.usage.pruning["visual"] == {"strategy": "uniform", "input_tokens": 20, "kept_tokens": 10}
        chunks = list(call(client, model, tool_choice=choice, stream=True, stream_options={"include_usage": True}))
        parts = [part for one in chunks for own in one.choices for part in own.delta.tool_calls or ()]
        assert [part.function.name for part in parts if part.function.name] == ["click"]
        streamed = "".join(part.function.arguments or "" for part in parts)
        assert json.loads(streamed) == json.loads(made.function.arguments)
        assert chunks[-1].usage.pruning == answer.usage.pruning


def test_offered_tools_may_be_left_alone(client: openai.OpenAI, model: str) -> None:
    for choice in ("auto", "none"):
        answer = call(client, model, tool_choice=choice)
        assert answer.choices[0].message.content
        assert answer.usage.pruning["visual"]["kept_tokens"] == 10
