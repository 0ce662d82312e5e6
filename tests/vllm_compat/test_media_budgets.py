"""vLLM's limits on the media of a request, kept where its own budget object cannot go."""

from __future__ import annotations

import pickle
import threading
from typing import Any

import pytest
from vllm import envs
from vllm.multimodal.media import AudioMediaIO, ImageMediaIO, VideoMediaIO

from vllm_prune.vllm_compat.media_budgets import (
    DecodedCount,
    RequestLimitExceeded,
    charge,
    count_of,
    for_decoder,
    media_limits,
)
from vllm_prune.vllm_compat.signatures import holder

NAMES = (
    "VLLM_MAX_MEDIA_DOWNLOAD_SIZE_MB",
    "VLLM_MAX_MEDIA_REQUEST_DOWNLOAD_SIZE_MB",
    "VLLM_MAX_MEDIA_REQUEST_DECODE_BYTES",
)


class Budget:
    """A budget such as vLLM 0.33 puts into media IO: it counts, has a limit, and holds a lock."""

    def __init__(self, limit: int, used: int = 0) -> None:
        self.limit, self.used, self.lock = limit, used, threading.Condition()

    def charge(self, size: int) -> None:
        if self.used + size > self.limit:
            raise ValueError("too many")
        self.used += size


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets vLLM's variables for one test, also those that this vLLM does not know."""

    def set_limits(file: int, downloads: int, decoded: int) -> None:
        for name, value in zip(NAMES, (file, downloads, decoded), strict=True):
            monkeypatch.setattr(envs, name, value, raising=False)

    return set_limits


def with_budget(media_io: Any, budget: Any) -> Any:
    (media_io.image_io if isinstance(media_io, VideoMediaIO) else media_io).decoded_budget = budget
    return media_io


def test_limits_are_read_in_bytes_and_zero_is_none(limits: Any) -> None:
    limits(2, 3, 4)
    assert (media_limits().file, media_limits().downloads, media_limits().decoded) == (2 << 20, 3 << 20, 4)
    limits(0, -1, 0)
    assert (media_limits().file, media_limits().downloads, media_limits().decoded) == (None, None, None)


@pytest.mark.parametrize("media_io", [ImageMediaIO(), VideoMediaIO(ImageMediaIO()), AudioMediaIO()])
def test_without_a_budget_nothing_is_changed(media_io: Any) -> None:
    assert for_decoder(media_io) == (media_io, None)
    assert count_of(media_io).left is None


@pytest.mark.parametrize("make", [ImageMediaIO, lambda: VideoMediaIO(ImageMediaIO(), fps=2), AudioMediaIO])
def test_a_media_io_with_a_lock_crosses_the_border(make: Any, limits: Any) -> None:
    limits(0, 0, 1000)
    budget = Budget(1000, used=400)
    media_io = with_budget(make(), budget)
    with pytest.raises(TypeError, match="pickle"):
        pickle.dumps(media_io)
    sent, charged = for_decoder(media_io)
    assert charged is budget
    arrived = pickle.loads(pickle.dumps(sent))
    assert type(arrived) is type(media_io)
    assert (count_of(arrived).left, count_of(arrived).used) == (600, 0)
    # The request's own media IO is left alone: its other items use it, too.
    assert getattr(media_io, "image_io", media_io).decoded_budget is budget


def test_a_count_refuses_what_is_over_the_rest() -> None:
    count = DecodedCount(100)
    count.charge(60)
    count.settle(count.reserve(1 << 30), 40)
    assert count.used == 100
    with pytest.raises(RequestLimitExceeded):
        count.charge(1)
    assert DecodedCount(3 * 8 * 8 * 4 + 5).frames(8, 8) == 4
    unlimited = DecodedCount()
    unlimited.charge(1 << 40)
    assert unlimited.frames(8, 8) is None


def test_a_budget_is_charged_and_refuses() -> None:
    budget = Budget(100)
    charge(budget, 90)
    assert budget.used == 90
    with pytest.raises(RequestLimitExceeded):
        charge(budget, 20)
    charge(None, 1 << 40)


@pytest.mark.skipif(not hasattr(envs, NAMES[2]), reason="vLLM has had these budgets since 0.33")
def test_vllms_own_budgets(limits: Any) -> None:
    """What vLLM calls, and what it counts, is what the count in its place takes."""
    limits(0, 1, 1000)
    decoded, downloads = holder("MediaDecodedBudget.charge")(), holder("MediaRequestDownloadBudget.charge")()
    for budget, most in ((decoded, 1000), (downloads, 1 << 20)):
        charge(budget, most)
        with pytest.raises(RequestLimitExceeded):
            charge(budget, 1)
    sent, charged = for_decoder(ImageMediaIO(decoded_budget=decoded))
    assert charged is decoded
    assert count_of(sent).left == 0
    methods = {name for name in vars(type(decoded)) if not name.startswith("_")}
    assert methods <= {*vars(DecodedCount), "used"}, "a method that media IO may call in a decoding process"
