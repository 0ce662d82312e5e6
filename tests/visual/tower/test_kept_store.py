"""What the store of kept tokens remembers, and for how long."""

from __future__ import annotations

import torch

from vllm_prune.grid import bitmap
from vllm_prune.visual.tower.kept_store import KeptStore

EACH = torch.arange(10)


def test_it_gives_what_it_was_told_last() -> None:
    store = KeptStore()
    store.remember("a", torch.tensor([0, 3]), 9)
    assert store.bitmap("a") == bitmap([0, 3], 9)
    store.remember("a", torch.tensor([1, 8]), 9)
    assert store.bitmap("a") == bitmap([1, 8], 9)
    assert store.bitmap("b") is None


def test_bytes_bound_it_and_the_oldest_goes_first() -> None:
    store = KeptStore(3 * EACH.nbytes)
    for name in "abc":
        store.remember(name, EACH, 20)
    # Reading counts as use.
    assert store.bitmap("a") is not None
    store.remember("d", EACH, 20)
    assert [store.bitmap(name) is not None for name in "abcd"] == [True, False, True, True]


def test_what_is_too_large_or_has_no_name_is_left_out() -> None:
    store = KeptStore(EACH.nbytes)
    store.remember("a", EACH, 20)
    store.remember("large", torch.arange(11), 20)
    store.remember("", EACH, 20)
    assert (store.bitmap("large"), store.bitmap("")) == (None, None)
    assert store.bitmap("a") is not None


def test_nothing_is_copied() -> None:
    store, cells = KeptStore(), EACH.clone()
    store.remember("a", cells, 20)
    assert store._items["a"].cells is cells
