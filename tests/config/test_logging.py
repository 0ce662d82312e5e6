from __future__ import annotations

import pytest

from vllm_prune.config.logging import ENV, Logging


def test_the_environment_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENV, raising=False)
    assert Logging().resolved_format() == "text"
    assert Logging(format="json").resolved_format() == "json"
    monkeypatch.setenv(ENV, "json")
    assert Logging(format="text").resolved_format() == "json"
    monkeypatch.setenv(ENV, "xml")
    with pytest.raises(ValueError, match="set it to text or json"):
        Logging().resolved_format()


def test_requests_have_lines_with_json_unless_said_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENV, raising=False)
    assert [Logging(format=form).lines() for form in ("text", "json")] == [False, True]  # type: ignore[arg-type]
    assert Logging(requests=True).lines() is True
    assert Logging(format="json", requests=False).lines() is False
