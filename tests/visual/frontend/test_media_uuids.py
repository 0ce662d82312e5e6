"""A uuid stands for the content that its owner sent with it, and for nothing else."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vllm_prune.visual.frontend.media_uuids import MediaUuidError, MediaUuids, MissingMediaError, OwnedUuid, shown

RED, BLUE = "11" * 32, "22" * 32


def test_the_same_content_has_the_same_key_and_the_uuid_alone_finds_it() -> None:
    uuids = MediaUuids()
    key = uuids.key("image", 0, OwnedUuid("a", "alpha"), RED)
    assert uuids.key("image", 3, OwnedUuid("a", "alpha"), RED) == key
    assert uuids.key("image", 0, OwnedUuid("a", "alpha"), None) == key


def test_other_content_is_refused_and_the_first_one_stays() -> None:
    uuids = MediaUuids()
    key = uuids.key("image", 0, OwnedUuid("a"), RED)
    with pytest.raises(MediaUuidError, match=r"uuid 'a' of image 1 already stands for another image.*choose a new one"):
        uuids.key("image", 1, OwnedUuid("a"), BLUE)
    assert uuids.key("image", 0, OwnedUuid("a"), None) == key


def test_a_uuid_means_nothing_to_another_owner() -> None:
    uuids = MediaUuids()
    keys = {uuids.key("image", 0, OwnedUuid("a", owner), RED) for owner in ("", "alpha", "beta")}
    assert len(keys) == 3
    with pytest.raises(MissingMediaError, match=r"image 2 was sent by its uuid only.*send the item again") as caught:
        uuids.key("image", 2, OwnedUuid("a", "gamma"), None)
    assert (caught.value.modality, caught.value.index) == ("image", 2)
    # Another owner's content does not forbid one's own.
    assert uuids.key("image", 0, OwnedUuid("a", "gamma"), BLUE) not in keys


def test_modalities_are_apart() -> None:
    uuids = MediaUuids()
    image = uuids.key("image", 0, OwnedUuid("a"), RED)
    assert uuids.key("video", 0, OwnedUuid("a"), BLUE) != image


def test_what_is_forgotten_can_be_bound_anew_under_another_key() -> None:
    uuids = MediaUuids(capacity=2)
    first = uuids.key("image", 0, OwnedUuid("a"), RED)
    for other in "bc":
        uuids.key("image", 0, OwnedUuid(other), RED)
    with pytest.raises(MissingMediaError):
        uuids.key("image", 0, OwnedUuid("a"), None)
    assert uuids.key("image", 0, OwnedUuid("a"), BLUE) != first


OWNERS = st.text(max_size=8)
UUIDS = st.text(st.characters(codec=None, exclude_categories=()), max_size=12)


@example([("", "\ud800", RED), ("", "?", RED), ("a", "x", RED), ("a\0", "x", RED)])
@given(st.lists(st.tuples(OWNERS, UUIDS, st.sampled_from([RED, BLUE])), max_size=12))
def test_keys_are_apart_whatever_clients_write(items: list[tuple[str, str, str]]) -> None:
    uuids, keys = MediaUuids(), {}
    for owner, uuid, content in items:
        try:
            key = uuids.key("image", 0, OwnedUuid(uuid, owner), content)
        except MediaUuidError:
            assert any((owner, uuid) == (one[0], one[1]) and one[2] != content for one in keys.values())
            continue
        # No content hash and no request's own id looks like this.
        assert re.fullmatch(r"uuid:[0-9a-f]{64}:[0-9a-f]{64}", key)
        assert keys.setdefault(key, (owner, uuid, content)) == (owner, uuid, content)


def test_long_uuids_are_cut_in_messages() -> None:
    assert len(shown("x" * 10_000)) < 80
    assert shown("a\nb") == r"'a\nb'"


def test_a_missing_item_names_uuid_and_budget() -> None:
    error = MissingMediaError("image", 1, "this server does not hold it")
    text = error.text("abc", "keep 0.5 (divprune)")
    assert str(error) == "image 1 was sent by its uuid only, and this server does not hold it: send the item again"
    for word in ("'abc'", "keep 0.5 (divprune)", "pruning.visual", "send the item again"):
        assert word in text
