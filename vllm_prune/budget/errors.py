"""Why a budget cannot be honoured: the error that becomes a 400, and the findings behind it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from pydantic import ValidationError

KvCause = Literal[
    "scheduler",
    "worker",
    "pipeline_parallel",
    "context_parallel",
    "micro_batches",
    "cache_dtype",
    "kv_connector",
    "speculative",
    "speculative_v2",
    "not_generating",
    "mla",
    "sliding_window",
    "alibi",
    "prefix",
    "hybrid",
    "cross_attention",
    "cache_groups",
    "layer_groups",
    "shared_cache",
    "head_sizes",
    "layout",
    "resumable",
    "prompt_embeds",
    "beam_search",
    "window",
    "signal",
    "options",
]
"""Why KV eviction is refused or skipped; labels of `kv_eviction_skipped_total`."""

VisualCause = Literal[
    "no_media",
    "adapter",
    "extension",
    "vllm_pruning",
    "pipeline_parallel",
    "micro_batches",
    "speculative",
    "tower_lora",
    "encoder_transfer",
    "encoder_graphs",
    "hidden_tower",
    "tower_backend",
    "tower_depth",
    "positions",
    "signal",
    "scorer",
    "selector",
    "weights",
]
"""Why visual pruning, or one strategy of it, is refused."""

Cause = KvCause | VisualCause
KV_CAUSES: tuple[KvCause, ...] = get_args(KvCause)
VISUAL_CAUSES: tuple[VisualCause, ...] = get_args(VisualCause)

CAUSE_NAMES: dict[Cause, str] = {
    "scheduler": "a scheduler other than vllm-prune's",
    "worker": "a worker other than vllm-prune's",
    "pipeline_parallel": "pipeline parallelism",
    "context_parallel": "context parallelism",
    "micro_batches": "micro-batch overlap (DBO)",
    "cache_dtype": "quantised caches",
    "kv_connector": "KV connectors",
    "speculative": "speculative decoding with a drafter",
    "speculative_v2": "speculative decoding on model runner V2",
    "not_generating": "models that do not generate",
    "mla": "latent attention (MLA)",
    "sliding_window": "sliding windows in every layer",
    "alibi": "ALiBi",
    "prefix": "prefix attention (visual tokens that see each other both ways)",
    "hybrid": "models without decoder attention",
    "cross_attention": "encoder-decoder models",
    "cache_groups": "cache groups that are not supported",
    "layer_groups": "strategies that need several groups of layers",
    "shared_cache": "layers that share a cache",
    "head_sizes": "keys and values of different size",
    "layout": "unknown cache layouts",
    "resumable": "resumable sessions",
    "prompt_embeds": "prompts given as embeddings",
    "beam_search": "beam search",
    "window": "windows larger than the workers have reserved memory for",
    "signal": "strategies whose signals the model, or its adapter, does not give",
    "options": "options that do not fit the model",
    "no_media": "models that take no images or videos",
    "adapter": "models without an adapter",
    "extension": "workers without vllm-prune's extension",
    "vllm_pruning": "vLLM's own --video-pruning-rate",
    "tower_lora": "LoRA on the vision tower",
    "encoder_transfer": "encoder disaggregation",
    "encoder_graphs": "encoder graphs with data-parallel encoding or a generic adapter",
    "hidden_tower": "strategies that look into a tower which runs as a whole",
    "tower_backend": "cuts inside a tower whose attention backend takes none",
    "tower_depth": "cuts behind the tower's last block",
    "positions": "several positions for a merged token where the language model takes one",
    "scorer": "strategy stts without a scorer that fits",
    "selector": "strategy vision_selector without weights that fit",
    "weights": "trained strategies without weights that fit",
}
"""What each cause is called in `doctor`, in logs and in the text of a 400."""

_LEADS = {
    "pruning.kv": "KV eviction is refused on this server",
    "pruning.visual": "visual pruning is off on this server",
}


class BudgetError(ValueError):
    """A budget that cannot be honoured. `param` names the request field to change."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True)
class Finding:
    """Why budgets, or some of them, cannot be honoured here: the same object for `doctor`, log, metric and 400.

    Attributes:
        cause: label of the metric, a key of `CAUSE_NAMES`.
        param: field of the request that is refused: "pruning.kv" and "pruning.visual" for the whole part.
        text: one line for people that says what to change.
    """

    cause: Cause
    param: str
    text: str

    def __str__(self) -> str:
        return self.text

    def error(self) -> BudgetError:
        """The refusal of a request that needs what is missing here."""
        lead = _LEADS.get(self.param)
        return BudgetError(f"{lead}: {self.text}" if lead else self.text, self.param)

    def wire(self) -> dict[str, str]:
        """As a plain dict, for the way from a worker to the front end."""
        return asdict(self)

    @classmethod
    def of(cls, wire: Mapping[str, str]) -> Finding:
        """Inverse of `wire`.

        Raises:
            ValueError: a cause that is not known here, from a worker of another version.
        """
        if wire["cause"] not in CAUSE_NAMES:
            raise ValueError(f"unknown cause {wire['cause']!r}; run one version of vllm-prune on all nodes")
        return cls(wire["cause"], wire["param"], wire["text"])


def kv_finding(cause: KvCause, detail: str, param: str = "pruning.kv") -> Finding:
    """A finding about KV eviction, its text led by what `CAUSE_NAMES` calls the cause."""
    return Finding(cause, param, f"{CAUSE_NAMES[cause]}: {detail}")


def visual_finding(cause: VisualCause, detail: str, param: str = "pruning.visual") -> Finding:
    """A finding about visual pruning, its text led by what `CAUSE_NAMES` calls the cause."""
    return Finding(cause, param, f"{CAUSE_NAMES[cause]}: {detail}")


def cause_names(causes: Iterable[Cause]) -> str:
    """What the causes are called, as an enumeration."""
    return ", ".join(CAUSE_NAMES[cause] for cause in causes)


def first_problem(error: ValidationError) -> dict[str, Any]:
    """The first of pydantic's findings: `loc`, `msg` and `type`, without the input, which may be a secret."""
    return dict(error.errors(include_url=False, include_context=False, include_input=False)[0])
