"""`"detail": null` in image parts, as typed SDKs write it for "not given"; vLLM refuses it."""

from __future__ import annotations

from typing import Any

LISTS = ("content", "output", "messages", "input")


def drop_null_details(document: dict[str, Any]) -> bool:
    """Remove null details from all parts of a request; returns whether there were any."""
    removed = False
    nodes: list[Any] = [document.get("messages"), document.get("input")]
    while nodes:
        node = nodes.pop()
        if isinstance(node, list):
            nodes.extend(node)
        elif isinstance(node, dict):
            for holder in (node, node.get("image_url")):
                if isinstance(holder, dict) and "detail" in holder and holder["detail"] is None:
                    del holder["detail"]
                    removed = True
            nodes.extend(node[name] for name in LISTS if isinstance(node.get(name), list))
    return removed
