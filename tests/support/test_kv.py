"""Every configuration that is not known to be exact is refused, with a cause that log, 400 and counter share."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_prune.budget.errors import CAUSE_NAMES, kv_finding
from vllm_prune.budget.kv import KvSpec
from vllm_prune.kv import suitability
from vllm_prune.kv.suitability import SCHEDULER, WORKER
from vllm_prune.support import kv
from vllm_prune.support.workers import KvWorkers, remember_workers

WINDOWS = SimpleNamespace(sliding_window=4096, layer_types=["sliding_attention", "full_attention"])


def config(**changes: Any) -> Any:
    """The parts of a vLLM configuration that decide; the engine tests check that a real one passes."""

    def part(**fields: Any) -> SimpleNamespace:
        return SimpleNamespace(**{name: changes.get(name, value) for name, value in fields.items()})

    return SimpleNamespace(
        scheduler_config=part(scheduler_cls=SCHEDULER),
        parallel_config=part(
            worker_cls=WORKER,
            pipeline_parallel_size=1,
            decode_context_parallel_size=1,
            prefill_context_parallel_size=1,
            use_ubatching=False,
        ),
        cache_config=part(cache_dtype="auto"),
        model_config=part(
            runner_type="generate",
            use_mla=False,
            hf_text_config=SimpleNamespace(),
            is_hybrid=False,
            is_attention_free=False,
            is_encoder_decoder=False,
            get_head_size=lambda: 64,
        ),
        **{name: changes.get(name) for name in ("use_v2_model_runner", "kv_transfer_config", "speculative_config")},
    )


def layer(**changes: Any) -> Any:
    impl = SimpleNamespace(
        sliding_window=changes.pop("sliding_window", (-1, -1)), alibi_slopes=changes.pop("alibi_slopes", None)
    )
    fields = {"layer_name": "layers.0", "head_size": 64, "head_size_v": 64, "kv_sharing_target_layer_name": None}
    return SimpleNamespace(impl=impl, **{**fields, **changes})


def test_what_is_supported_is_not_refused() -> None:
    assert kv.config_refusals(config()) == []
    assert kv.config_refusals(config(speculative_config=SimpleNamespace(method="ngram"))) == []
    assert kv.config_refusals(config(use_v2_model_runner=True)) == []
    assert kv.config_refusals(config(cache_dtype="bfloat16")) == []
    off = SimpleNamespace(sliding_window=4096, use_sliding_window=False)
    assert kv.config_refusals(config(hf_text_config=off)) == []
    assert kv.config_refusals(config(hf_text_config=WINDOWS)) == []
    assert kv.config_refusals(config(is_hybrid=True)) == []
    assert suitability.layer_refusals([layer(), layer(sliding_window=None), layer(sliding_window=-1)]) == []


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"scheduler_cls": None}, "scheduler"),
        ({"worker_cls": "auto"}, "worker"),
        ({"pipeline_parallel_size": 2}, "pipeline_parallel"),
        ({"decode_context_parallel_size": 2}, "context_parallel"),
        ({"prefill_context_parallel_size": 2}, "context_parallel"),
        ({"use_ubatching": True}, "micro_batches"),
        ({"cache_dtype": "fp8"}, "cache_dtype"),
        ({"kv_transfer_config": object()}, "kv_connector"),
        ({"speculative_config": SimpleNamespace(method="eagle3")}, "speculative"),
        ({"use_v2_model_runner": True, "speculative_config": SimpleNamespace(method="eagle3")}, "speculative"),
        ({"use_v2_model_runner": True, "speculative_config": SimpleNamespace(method="ngram")}, "speculative_v2"),
        ({"runner_type": "pooling"}, "not_generating"),
        ({"use_mla": True}, "mla"),
        ({"hf_text_config": SimpleNamespace(sliding_window=4096)}, "sliding_window"),
        ({"is_attention_free": True}, "hybrid"),
        ({"is_encoder_decoder": True}, "cross_attention"),
        ({"is_hybrid": True, "speculative_config": SimpleNamespace(method="ngram")}, "cache_groups"),
        ({"hf_text_config": WINDOWS, "speculative_config": SimpleNamespace(method="ngram")}, "cache_groups"),
    ],
)
def test_a_configuration_is_refused(changes: dict[str, Any], cause: str) -> None:
    [finding] = kv.config_refusals(config(**changes))
    assert (finding.cause, finding.param) == (cause, "pruning.kv")
    assert kv.refusal(config(**changes)) == finding
    assert finding.text.startswith(CAUSE_NAMES[finding.cause])


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"sliding_window": (128, 0)}, "sliding_window"),
        ({"sliding_window": 128}, "sliding_window"),
        ({"alibi_slopes": [0.5]}, "alibi"),
        ({"use_mm_prefix": True}, "prefix"),
        ({"kv_sharing_target_layer_name": "layers.0"}, "shared_cache"),
        ({"head_size_v": 32}, "head_sizes"),
    ],
)
def test_a_layer_is_refused(changes: dict[str, Any], cause: str) -> None:
    [finding] = suitability.layer_refusals([layer(), layer(**changes)])
    assert finding.cause == cause
    assert [finding.cause for finding in suitability.layer_refusals([])] == ["hybrid"]


def managers(*kinds: str, mamba: str = "align") -> list[Any]:
    """Block managers by the beginning of their class's name."""
    module = importlib.import_module("vllm.v1.core.single_type_kv_cache_manager")
    made = [object.__new__(getattr(module, f"{kind}Manager")) for kind in kinds]
    for manager in made:
        manager.mamba_cache_mode = mamba
    return made


@pytest.mark.parametrize(
    "kinds",
    [
        ("FullAttention",),
        ("FullAttention", "SlidingWindow"),
        ("Mamba", "Mamba", "FullAttention"),
        ("SlidingWindow", "Mamba", "FullAttention"),
    ],
)
def test_groups_beside_full_attention_are_left_alone(kinds: tuple[str, ...]) -> None:
    assert suitability.group_refusals(managers(*kinds)) == []
    findings = suitability.group_refusals(managers(*kinds), speculates=True)
    assert ["speculative decoding" in finding.text for finding in findings] == [True] * (len(kinds) > 1)


@pytest.mark.parametrize(
    "kinds",
    [
        (),
        ("SlidingWindow",),
        ("Mamba",),
        ("FullAttention", "FullAttention"),
        ("FullAttention", "ChunkedLocalAttention"),
        ("FullAttention", "CrossAttention"),
        ("RSWA",),
    ],
)
def test_other_groups_are_refused(kinds: tuple[str, ...]) -> None:
    [finding] = suitability.group_refusals(managers(*kinds))
    assert finding.cause == "cache_groups"
    assert str(len(kinds)) in finding.text
    assert "one of full attention is supported" in finding.text


def test_states_after_every_block_are_refused() -> None:
    [finding] = suitability.group_refusals(managers("Mamba", "FullAttention", mamba="all"))
    assert "--mamba-cache-mode align" in finding.text
    groups = [group("FullAttention", "a"), group("Mamba", "s", mode="all")]
    assert suitability.grouping_refusals(groups, [layer(layer_name="a")], False) == [finding]


def group(kind: str, *names: str, mode: str = "align") -> Any:
    """A cache group by the beginning of its specification's name."""
    spec = object.__new__(getattr(importlib.import_module("vllm.v1.kv_cache_interface"), f"{kind}Spec"))
    object.__setattr__(spec, "mamba_cache_mode", mode)
    return SimpleNamespace(kv_cache_spec=spec, layer_names=list(names))


def test_a_worker_knows_the_group_that_is_compacted() -> None:
    windows, full, states = group("SlidingWindow", "w"), group("FullAttention", "a", "b"), group("Mamba", "s")
    layers = [layer(layer_name="w", sliding_window=(63, 0)), layer(layer_name="a"), layer(layer_name="b")]
    evictable = suitability.evictable_layers(layers)
    assert [one.layer_name for one in evictable] == ["a", "b"]
    assert suitability.evictable_layers(layers[:1]) == layers[:1]
    for groups, index in (([windows, full], 1), ([full, states], 0), ([full], 0)):
        assert suitability.full_attention_groups(groups) == (index,)
        assert suitability.grouping_refusals(groups, evictable, False) == []
        assert len(suitability.grouping_refusals(groups, evictable, True)) == (len(groups) > 1)


def test_a_worker_refuses_groups_that_hold_something_else() -> None:
    layers = [layer(layer_name="a"), layer(layer_name="b")]
    for groups in (
        [group("FullAttention", "a"), group("FullAttention", "b")],
        [group("FullAttention", "a", "b"), group("EncoderOnlyAttention", "e")],
        [group("Mamba", "a"), group("SlidingWindow", "b")],
        [group("FullAttention", "a", "b", "w")],
        [group("FullAttention", "a"), group("SlidingWindow", "b")],
    ):
        [finding] = suitability.grouping_refusals(groups, layers, False)
        assert finding.cause == "cache_groups"


def served(*findings: Any, offers: tuple[str, ...] = ("queries", "values")) -> Any:
    """A configuration whose workers have answered."""
    served = config()
    remember_workers(served, KvWorkers(findings, frozenset(offers)))
    return served


def test_a_strategy_without_its_signal_is_refused() -> None:
    finding = kv.missing(KvSpec("gui_kv", keep="0.5"), served())
    assert finding is not None
    assert (finding.cause, finding.param) == ("signal", "pruning.kv.strategy")
    assert "'gui_kv'" in finding.text
    assert "needs saliency" in finding.text
    assert kv.missing(KvSpec("gui_kv", '{"norm_source":"value"}', keep="0.5"), served()) is None
    assert kv.missing(KvSpec("keydiff", keep="0.5"), served()) is None
    assert kv.missing(KvSpec("gui_kv", keep="0.5"), served(offers=("queries", "saliency", "values"))) is None


def test_workers_that_nobody_asks_are_trusted() -> None:
    assert kv.missing(KvSpec("gui_kv", keep="0.5"), config()) is None
    assert kv.refusal(config()) is None


def test_what_a_worker_says_refuses_every_budget() -> None:
    finding = kv_finding("layout", "packed")
    assert kv.refusal(served(finding)) is finding
    assert kv.refusal(served()) is None
    assert kv.findings(served(finding)) == [finding]


def test_a_window_above_what_the_workers_hold_is_refused() -> None:
    finding = kv.missing(KvSpec("snapkv", keep="0.5", window=65), served())
    assert finding is not None
    assert (finding.cause, finding.param) == ("window", "pruning.kv.window")
    larger = served()
    larger.additional_config = {"vllm_prune": {"max_window": 128}}
    assert kv.missing(KvSpec("snapkv", keep="0.5", window=65), larger) is None


@pytest.mark.parametrize("name", ["pyramid_kv", "visual_exit"])
def test_strategies_by_depth_need_groups_of_layers(name: str) -> None:
    finding = kv.missing(KvSpec(name, keep="0.5"), served())
    assert finding is not None
    assert (finding.cause, finding.param) == ("layer_groups", "pruning.kv.strategy")
    assert "set kv.layer_groups" in finding.text
    mixed = served()
    mixed.model_config.is_hybrid = True
    finding = kv.missing(KvSpec(name, keep="0.5"), mixed)
    assert finding is not None
    assert finding.cause == "layer_groups"
    assert "set kv.layer_groups" not in finding.text
    assert "full attention" in finding.text
    divided = served()
    divided.additional_config = {"vllm_prune": {"layer_groups": [2]}}
    assert kv.missing(KvSpec(name, keep="0.5"), divided) is None
    divided.speculative_config = SimpleNamespace(method="ngram")
    assert [one.cause for one in kv.config_refusals(divided)] == ["cache_groups"]


def test_a_budget_is_predicted_as_the_engine_divides_it() -> None:
    places, divided = [SimpleNamespace(offset=10, length=80, is_embed=None)], served()
    spec = KvSpec("visual_exit", keep="0.6")
    divided.additional_config = {"vllm_prune": {"layer_groups": [2]}}
    divided.scheduler_config.max_num_seqs = 8
    divided.model_config.hf_text_config = SimpleNamespace(num_hidden_layers=4)
    assert kv.predicted(spec, 100, places, divided).counts == (100, 20)
    divided.additional_config = {}
    assert kv.predicted(spec, 100, places, divided).counts == (60,)


def test_options_that_do_not_fit_the_heads_are_refused() -> None:
    offers = ("queries", "saliency", "values")
    finding = kv.missing(KvSpec("gui_kv", '{"rank":64}', keep="0.5"), served(offers=offers))
    assert finding is not None
    assert (finding.cause, finding.param) == ("options", "pruning.kv.options")
    assert "rank 64 spans every key of heads of size 64" in finding.text
    assert kv.missing(KvSpec("gui_kv", '{"rank":63}', keep="0.5"), served(offers=offers)) is None


def test_beam_search_is_refused_by_its_cause() -> None:
    assert kv.beam_search().cause == "beam_search"
