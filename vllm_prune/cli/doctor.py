"""What is installed, registered and refused, as checks that a person or a script can read."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

from ..budget.errors import KV_CAUSES, VISUAL_CAUSES, cause_names
from ..catalogue import KV, VISUAL
from ..config.load import ENV, ConfigError, load
from ..kv.suitability import SCHEDULER, WORKER
from ..visual.scorers import trained
from ..visual.scorers.base import ScorerError
from ..visual.scorers.stts.files import PLACE, read_shape
from ..visual.scorers.vision_selector import load_selector
from ..vllm_compat import bodies, media_connector, plugin, serve_command, signatures, version


@dataclass(frozen=True)
class Check:
    """One line of the report: `good` is False when it keeps budgets from being honoured."""

    name: str
    good: bool
    detail: str


def examine() -> list[Check]:
    """All checks, cheapest first; later ones are skipped where vLLM itself is missing or unknown."""
    try:
        version.check_version()
    except ImportError as error:
        return [Check("vllm", False, f"not importable: {error}; install the extra cpu or cuda")]
    except version.UnsupportedVersion as error:
        return [Check("vllm", False, str(error))]
    return [
        _vllm(),
        *_platform(),
        _signatures(),
        _bodies(),
        _plugin(),
        _front_end(),
        *_adapters(),
        _two_way(),
        _configuration(),
        _stts(),
        _vision_selector(),
        *_trained(),
        _visual(),
        _kv(),
        _media(),
    ]


def _vllm() -> Check:
    installed = version.vllm_version()
    tested = version.TESTED[version.minor_of(installed)]
    return Check("vllm", True, f"{installed} (supported: {version.supported()}); tested with this minor: {tested}")


def _platform() -> list[Check]:
    from vllm.platforms import current_platform

    name = current_platform.device_name or current_platform.device_type
    runner = (
        "visual budgets and KV eviction: V1 and V2 alike. On CUDA vllm-prune serve selects V1, as KV eviction has run "
        "on a GPU with V1 only; VLLM_USE_V2_MODEL_RUNNER=1 selects V2, which has run in tests on a CPU (by Triton's "
        "interpreter): never on a GPU, compiled, or with pipeline parallelism. V2 refuses KV budgets beside any "
        "speculation. On a CPU vLLM has a V2 for tests only"
    )
    return [
        Check("platform", True, f"{current_platform.device_type} ({name})"),
        Check("model runner", True, runner),
    ]


def _signatures() -> Check:
    problems = signatures.signature_problems()
    return Check(
        "vllm internals", not problems, "; ".join(problems) or f"all {len(signatures.SIGNATURES)} names are as expected"
    )


def _bodies() -> Check:
    """What a patch release has changed behind unchanged signatures: to know, and no fault by itself."""
    minor = version.minor_of(version.vllm_version())
    known = bodies.reviewed_for(minor)
    others = [str(location) for location in bodies.unreviewed(known, minor)]
    detail = f"all {len(known)} functions that are built on are as they were reviewed for {minor}"
    if others:
        detail = f"{len(others)} of {len(known)} functions differ from those reviewed for {minor}: {', '.join(others)}"
    return Check("vllm bodies", True, detail)


def _front_end() -> Check:
    try:
        serve_command.refuse_rust_front_end()
    except serve_command.OtherFrontEnd as error:
        return Check("front end", False, str(error))
    return Check("front end", True, "vLLM's in Python; its Rust front end is refused, as it would ignore budgets")


def _plugin() -> Check:
    installed = {entry.name for entry in entry_points(group="vllm.general_plugins")}
    listed = os.environ.get("VLLM_PLUGINS")
    if "vllm_prune" not in installed:
        return Check("plugin", False, "entry point not installed: pip install vllm-prune into this environment")
    if listed is not None and "vllm_prune" not in listed.split(","):
        return Check("plugin", False, f"VLLM_PLUGINS={listed} leaves out vllm_prune; add it")
    return Check("plugin", True, "installed; vLLM loads it in every process")


def _adapters() -> list[Check]:
    from vllm import ModelRegistry

    from ..visual.models.table import ADAPTERS, FAMILIES

    plugin.register_adapters()
    checks = []
    for architecture, target in ADAPTERS.items():
        module, name = target.split(":")
        try:
            ours = getattr(importlib.import_module(module), name)
        except Exception as error:  # an import error is what vLLM would swallow
            checks.append(Check(architecture, False, f"{target}: {error!r}"))
            continue
        registered = ModelRegistry.models[architecture].load_model_cls()
        detail = f"{target}" if registered is ours else f"registered is {registered}, not ours"
        if architecture in FAMILIES:
            detail = f"{FAMILIES[architecture].summary}; {detail}"
        checks.append(Check(architecture, registered is ours, detail))
    return checks


def _two_way() -> Check:
    from vllm.platforms import current_platform

    from ..visual.models.table import FAMILIES

    names = ", ".join(name.partition("For")[0] for name, family in FAMILIES.items() if family.two_way)
    detail = (
        f"{names}: experimental until run on a GPU. Tested with a tiny random model and a causal mask in place of "
        "prefix attention only. Molmo2: budgets for videos, with positions of the shortened prompt; image budgets are "
        "refused with 400"
    )
    if current_platform.is_cpu():
        detail = (
            "not on the CPU: visual tokens attend in both directions (prefix attention), which vLLM has in its "
            "Triton, FlexAttention and FlashAttention 4 backends only. Elsewhere " + detail
        )
    return Check("prefix attention", True, detail)


def _stts() -> Check:
    try:
        path = load().stts.scorer
        shape = read_shape(Path(path)) if path is not None else None
    except ConfigError:
        return Check("stts scorer", True, "not looked at: the configuration cannot be read")
    except ScorerError as error:
        return Check("stts scorer", False, f"stts.scorer: {error}")
    if shape is not None:
        return Check("stts scorer", True, f"{path}: {shape}; whether it fits is decided with the served model")
    detail = f"none configured: strategy 'stts' runs where the served checkpoint has {PLACE}, and is refused with 400 "
    return Check(
        "stts scorer", True, detail + "elsewhere; name another file in the configuration, stts: {scorer: FILE}"
    )


def _vision_selector() -> Check:
    try:
        weights = load().vision_selector.weights
        selector = load_selector(Path(weights)) if weights is not None else None
    except ConfigError:
        return Check("vision_selector", True, "not looked at: the configuration cannot be read")
    except ScorerError as error:
        return Check("vision_selector", False, str(error))
    if selector is not None:
        return Check("vision_selector", True, f"{weights}: for language models of hidden size {selector.width}")
    return Check("vision_selector", True, "no weights configured: the strategy is refused with 400; name a file or "
                 "folder in the configuration, vision_selector: {weights: PATH}")  # fmt: skip


def _trained() -> Iterator[Check]:
    try:
        configured = list(load().weights)
    except ConfigError:
        return
    for name, path in configured:
        if path is None:
            detail = (
                "no weights configured: the strategy is refused with 400; name a file or folder in the configuration"
            )
            yield Check(name, True, f"{detail}, weights: {{{name}: PATH}}")
            continue
        try:
            cls: type = (VISUAL if name in VISUAL.names() else KV).strategy_class(name)
            number = len(trained.find(cls, Path(path)))
        except ScorerError as error:
            yield Check(name, False, str(error))
        else:
            yield Check(name, True, f"{path}: {number} tensors; whether they fit is decided with the served model")


def _visual() -> Check:
    return Check(
        "visual pruning", True, f"{', '.join(VISUAL.names())}; refused with a reason: {cause_names(VISUAL_CAUSES)}"
    )


def _kv() -> Check:
    detail = f"{', '.join(KV.names())}; needs --scheduler-cls {SCHEDULER} and --worker-cls {WORKER} "
    detail += f"(vllm-prune serve sets both); refused with a reason: {cause_names(KV_CAUSES)}"
    try:
        for path in (SCHEDULER, WORKER):
            module, _, name = path.rpartition(".")
            getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever keeps an engine from loading them
        return Check("kv eviction", False, f"cannot be loaded: {error!r}")
    return Check("kv eviction", True, detail)


def _media() -> Check:
    selected = os.environ.get("VLLM_MEDIA_CONNECTOR")
    if selected not in (None, media_connector.MEDIA_CONNECTOR):
        detail = f"VLLM_MEDIA_CONNECTOR={selected}: URLs and decoding are not guarded; unset it, or set it to "
        return Check("media intake", False, f"{detail}{media_connector.MEDIA_CONNECTOR}")
    try:
        media_connector.load_server_object("media_connector")
    except Exception as error:  # whatever keeps a server from loading it
        return Check("media intake", False, f"cannot be loaded: {error!r}")
    how = "selected" if selected else "vllm-prune serve selects it; for vllm serve set"
    return Check("media intake", True, f"{how} VLLM_MEDIA_CONNECTOR={media_connector.MEDIA_CONNECTOR}")


def _configuration() -> Check:
    try:
        load()
    except ConfigError as error:
        return Check("configuration", False, str(error))
    return Check("configuration", True, os.environ.get(ENV, "defaults (no file given)"))
