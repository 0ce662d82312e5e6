from __future__ import annotations

from typing import get_args

import pytest

from vllm_prune.budget.errors import (
    KV_CAUSES,
    VISUAL_CAUSES,
    WORDS,
    Finding,
    KvCause,
    VisualCause,
    kv_finding,
    visual_finding,
    words_of,
)


def test_every_cause_has_words_of_its_own() -> None:
    assert set(WORDS) == {*KV_CAUSES, *VISUAL_CAUSES}
    assert set(WORDS) == {*get_args(KvCause), *get_args(VisualCause)}
    assert len(set(WORDS.values())) == len(WORDS)


def test_the_text_leads_with_the_words_of_the_cause() -> None:
    finding = kv_finding("mla", "it keeps one row for all heads")
    assert finding == Finding("mla", "pruning.kv", "latent attention (MLA): it keeps one row for all heads")
    assert str(finding) == finding.text
    assert visual_finding("no_media", "x", "pruning.visual.image").param == "pruning.visual.image"
    assert words_of(("mla", "alibi")) == "latent attention (MLA), ALiBi"


@pytest.mark.parametrize(
    ("param", "lead"),
    [
        ("pruning.kv", "KV eviction is refused on this server: x"),
        ("pruning.visual", "visual pruning is off on this server: x"),
        ("pruning.visual.strategy", "x"),
    ],
)
def test_a_finding_becomes_the_refusal_of_a_request(param: str, lead: str) -> None:
    error = Finding("signal", param, "x").error()
    assert (str(error), error.param) == (lead, param)


def test_findings_cross_processes_as_plain_data() -> None:
    finding = kv_finding("layout", "packed: by eights")
    assert Finding.of(finding.wire()) == finding
    assert set(map(type, finding.wire().values())) == {str}
    with pytest.raises(ValueError, match="one version of vllm-prune on all nodes"):
        Finding.of({**finding.wire(), "cause": "no such cause"})
