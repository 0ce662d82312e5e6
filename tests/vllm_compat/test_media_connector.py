"""Our media connector is looked up once, as vLLM makes one for every request with media."""

from __future__ import annotations

from typing import Any

import pytest

from vllm_prune.vllm_compat import media_connector


def test_packages_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def load(name: str) -> Any:
        read.append(name)
        return dict

    monkeypatch.setattr(media_connector, "load_server_object", load)
    media_connector._connector_class.cache_clear()
    try:
        assert [media_connector._media_connector(a=number) for number in range(3)] == [{"a": n} for n in range(3)]
    finally:
        media_connector._connector_class.cache_clear()
    assert read == ["media_connector"]
