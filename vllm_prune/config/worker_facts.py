"""What the workers have to know of the operator's configuration; they read neither its file nor its environment.

The launcher puts these facts into vLLM's `additional_config`, which vLLM carries to every worker on every node. Under
plain `vllm serve` nothing puts them there, and the defaults below apply.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .load import PruneConfig

KEY = "vllm_prune"
"""Key of the facts in `additional_config`."""

FLAG = "--additional-config"
MAX_WINDOW = 64
"""Largest observation window of KV eviction unless the operator allows another one."""


class FactsError(ValueError):
    """An `--additional-config` that cannot be merged with the facts; the message says what to change."""


@dataclass(frozen=True)
class WorkerFacts:
    """The facts.

    Attributes:
        launched: whether `vllm-prune serve` has started the server; its front end refuses what a worker cannot do.
        scorer: file of the scorer of strategy `stts`; None for the one beside the checkpoint.
        selector: file or folder with the weights of strategy `vision_selector`; None for none.
        max_window: largest observation window that any request may have.
        observed_requests: most requests with such a window at once; None for all that can run.
        prompt_queries: most requests at once whose prompt's queries are summed up.
        feature_cache_bytes: memory of a worker for the vision tower's outputs of items seen before.
        weights: file or folder of the trained layers of each strategy that has some, by its name.
        layer_groups: numbers of the layers at which another group of layers begins; empty for one group.
        plain_graphs: whether graphs of decode steps are captured without observation, too.
    """

    launched: bool = False
    scorer: str | None = None
    selector: str | None = None
    max_window: int = MAX_WINDOW
    observed_requests: int | None = None
    prompt_queries: int = 0
    weights: dict[str, str] = field(default_factory=dict)
    feature_cache_bytes: int = 0
    layer_groups: tuple[int, ...] = ()
    plain_graphs: bool = True

    @classmethod
    def of(cls, vllm_config: Any) -> WorkerFacts:
        """The facts of a server, from vLLM's configuration."""
        additional = getattr(vllm_config, "additional_config", None)
        wire = additional.get(KEY, {}) if isinstance(additional, dict) else {}
        facts = cls(**{one.name: wire[one.name] for one in fields(cls) if one.name in wire})
        # JSON has no tuples.
        return replace(facts, layer_groups=tuple(facts.layer_groups))

    @classmethod
    def configured(cls, config: PruneConfig) -> WorkerFacts:
        """The facts of a configuration; relative paths are those of this process's working directory."""
        paths = (config.stts.scorer, config.vision_selector.weights)
        scorer, selector = (None if path is None else str(Path(path).absolute()) for path in paths)
        layers = {name: str(Path(path).absolute()) for name, path in config.weights if path is not None}
        kv = config.kv
        reserved = (config.largest_window, kv.observed_requests, kv.prompt_queries)
        cached = config.feature_cache.max_bytes
        return cls(True, scorer, selector, *reserved, layers, cached, kv.layer_groups, kv.plain_graphs)

    def wire(self) -> dict[str, Any]:
        """The facts that differ from the defaults.

        vLLM's compile cache is keyed by `additional_config`; what says nothing new stays out of it.
        """
        defaults = asdict(WorkerFacts())
        return {name: value for name, value in asdict(self).items() if value != defaults[name]}

    def merged_into(self, arguments: Sequence[str]) -> list[str]:
        """Arguments of `vllm serve` with the facts beside what the user's `--additional-config` says.

        vLLM takes that flag as JSON or, key by key, as `--additional-config.KEY VALUE`; both are kept.

        Raises:
            FactsError: the user's value is not a JSON object, or sets `vllm_prune` itself.
        """
        names = [_normal(argument) for argument in arguments]
        if any(name.startswith((f"{FLAG}.{KEY}=", f"{FLAG}.{KEY}.")) or name == f"{FLAG}.{KEY}" for name in names):
            raise FactsError(_TAKEN)
        if any(name.startswith(f"{FLAG}.") for name in names):
            # vLLM merges these with each other, and lets them replace the JSON.
            pairs = ((f"{FLAG}.{KEY}.{name}", json.dumps(value)) for name, value in self.wire().items())
            return [*arguments, *(text for pair in pairs for text in pair)]
        others, user = _split(arguments, names)
        return [*others, FLAG, json.dumps({**user, KEY: self.wire()}, sort_keys=True)]


_TAKEN = f"{FLAG} sets {KEY!r}, which vllm-prune serve sets itself; leave that key out"


def _normal(argument: str) -> str:
    """An argument with dashes in its flag, as vLLM reads it; keys behind a dot stay as they are."""
    flag, equals, value = argument.partition("=")
    name, dot, keys = flag.partition(".")
    return name.replace("_", "-") + dot + keys + equals + value


def _split(arguments: Sequence[str], names: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """The arguments without the flag, and the object of its last occurrence, which is the one that vLLM takes."""
    others: list[str] = []
    text, value_follows = None, False
    for argument, name in zip(arguments, names, strict=True):
        if value_follows:
            text, value_follows = argument, False
        elif name == FLAG:
            value_follows = True
        elif name.startswith(f"{FLAG}="):
            text = argument.partition("=")[2]
        else:
            others.append(argument)
    try:
        user = json.loads(text) if text is not None else {}
    except json.JSONDecodeError as error:
        raise FactsError(f"{FLAG} is not JSON: {error}") from None
    if value_follows or not isinstance(user, dict):
        raise FactsError(f"{FLAG} takes a JSON object")
    if KEY in user:
        raise FactsError(_TAKEN)
    return others, user
