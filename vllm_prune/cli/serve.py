"""The launcher: prepares the environment, then hands over to vLLM's own `serve` command in this process."""

from __future__ import annotations

import faulthandler
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ..config.load import ENV, ConfigError, load
from ..config.tenants import KEYS_CONFLICT
from ..config.worker_facts import FactsError, WorkerFacts
from ..kv.ctrl_c import LAUNCHED
from ..kv.suitability import SCHEDULER, WORKER
from ..support import self_check
from ..vllm_compat import media_connector, serve_command, version
from . import telemetry_arguments
from .host import CPU_CACHE, DEMO_CACHE, MEMORY_FLAGS, arithmetic, has_cuda, memory_share, preload, reuse_freed_memory

METRICS_DIR = "PROMETHEUS_MULTIPROC_DIR"
V2_RUNNER = "VLLM_USE_V2_MODEL_RUNNER"
MEDIA_CONNECTOR = "VLLM_MEDIA_CONNECTOR"
DEMO_NAME = "vllm-prune-demo"


class LaunchError(RuntimeError):
    """The server cannot be started; the message says what to change."""


def launch(model: str, arguments: Sequence[str], config: str | None) -> None:
    """Start the server and return when it has drained.

    Args:
        model: path or hub name.
        arguments: anything that `vllm serve` takes.
        config: the operator's configuration, or None for `VLLM_PRUNE_CONFIG` or the defaults.

    Raises:
        LaunchError: unsupported vLLM, unusable configuration, missing model.
    """
    model = os.path.expanduser(model)
    _check(model, config)
    _refuse_other_front_ends(arguments)
    if load().tenants and (has_flag(arguments, "--api-key") or os.environ.get("VLLM_API_KEY")):
        raise LaunchError(KEYS_CONFLICT)
    preload()
    reuse_freed_memory()
    choose_runner(arguments)
    os.environ["VLLM_PLUGINS"] = serve_command.allowed_plugins(os.environ.get("VLLM_PLUGINS"))
    os.environ[LAUNCHED] = "1"
    _trace_crashes()
    own_metrics = METRICS_DIR not in os.environ
    if own_metrics:
        # Engine and workers count in processes of their own; files in this directory are how they are added up.
        # Has to be set before anything imports prometheus_client.
        os.environ[METRICS_DIR] = tempfile.mkdtemp(prefix="vllm-prune-metrics-")
    try:
        choose_media_connector(arguments)
        added = [*_defaults(model, arguments), *_telemetry(arguments)]
        serve_command.run_vllm_serve([model, *_with_worker_facts(arguments), *added])
    finally:
        if own_metrics:
            shutil.rmtree(os.environ[METRICS_DIR], ignore_errors=True)


def _check(model: str, config: str | None) -> None:
    if config is not None:
        os.environ[ENV] = str(Path(config).resolve())
    try:
        load()
        version.check_version()
    except (ConfigError, version.UnsupportedVersion) as error:
        raise LaunchError(str(error)) from None
    except ImportError as error:
        raise LaunchError(f"vLLM is not importable ({error}); install vllm-prune[cpu] or vllm-prune[cuda]") from None
    if is_path(model) and not Path(model).is_dir():
        raise LaunchError(f"{model} is not a directory; give a checkpoint's folder, or a hub name such as ORG/MODEL")


def _defaults(model: str, arguments: Sequence[str]) -> list[str]:
    """Arguments that we add where the user gave none."""
    wanted = {
        "--worker-extension-cls": self_check.EXTENSION,
        "--worker-cls": WORKER,
        "--scheduler-cls": SCHEDULER,
        "--shutdown-timeout": "30",
    }
    if is_demo(model):
        wanted |= {
            "--served-model-name": DEMO_NAME,
            "--max-model-len": "8192",
            "--limit-mm-per-prompt": '{"image": 8, "video": 4}',
        }
    if not has_flag(arguments, "--dtype"):
        wanted |= arithmetic(is_demo(model))
    if not any(has_flag(arguments, flag) for flag in MEMORY_FLAGS) and CPU_CACHE not in os.environ:
        wanted |= {"--kv-cache-memory-bytes": DEMO_CACHE} if is_demo(model) else memory_share()
    return [text for flag, value in wanted.items() if not has_flag(arguments, flag) for text in (flag, value)]


def _with_worker_facts(arguments: Sequence[str]) -> list[str]:
    """The user's arguments, with what the workers need of the configuration in `--additional-config`."""
    try:
        return WorkerFacts.configured(load()).merged_into(arguments)
    except FactsError as error:
        raise LaunchError(str(error)) from None


def _telemetry(arguments: Sequence[str]) -> list[str]:
    """Arguments for logs and traces from the configuration and the environment."""
    try:
        logs = telemetry_arguments.log_arguments(load().logging, arguments)
        traces, variables = telemetry_arguments.trace_arguments(arguments, os.environ)
    except telemetry_arguments.TelemetryError as error:
        raise LaunchError(str(error)) from None
    os.environ.update(variables)
    return logs + traces


def _refuse_other_front_ends(arguments: Sequence[str]) -> None:
    """Refuse vLLM's servers that run none of our code: they would take budgets and ignore them."""
    try:
        serve_command.refuse_rust_front_end()
    except serve_command.OtherFrontEnd as error:
        raise LaunchError(str(error)) from None
    for flag in ("--grpc", "--grpc-port"):
        if has_flag(arguments, flag):
            raise LaunchError(f"{flag}: vLLM's gRPC server would ignore budgets; drop it, or use vllm serve")


def is_path(model: str) -> bool:
    """Whether a model is written as a path; anything else vLLM looks up on disk and then on the hub."""
    return model in (".", "..") or model.startswith(("/", "./", "../", "~"))


def is_demo(model: str) -> bool:
    """Whether `model` is the checkpoint that comes with the repository."""
    path = Path(model)
    return path.parts[-2:] == ("demo_model", "checkpoint") and (path / "config.json").is_file()


def has_flag(arguments: Sequence[str], flag: str) -> bool:
    """Whether a vLLM flag is among the arguments, in either spelling: dashes or underscores, `=` or space."""
    names = {argument.split("=", 1)[0].replace("_", "-") for argument in arguments if argument.startswith("--")}
    return flag in names


def choose_runner(arguments: Sequence[str]) -> None:
    """On CUDA, select the model runner on which KV eviction has run on a GPU, unless the user has chosen.

    Where the user names another worker or scheduler nothing is evicted, and the runner is left to vLLM.
    """
    evicts = not any(has_flag(arguments, flag) for flag in ("--worker-cls", "--scheduler-cls"))
    if evicts and V2_RUNNER not in os.environ and has_cuda():
        os.environ[V2_RUNNER] = "0"
        print(
            f"vllm-prune: {V2_RUNNER}=0, as KV eviction has run on a GPU with model runner V1 only; "
            "set it to 1 for V2, where it has run on a CPU",
            flush=True,
        )


def choose_media_connector(arguments: Sequence[str]) -> None:
    """Let vLLM load media through our connector, unless the user has chosen, and start what it decodes with."""
    if os.environ.setdefault(MEDIA_CONNECTOR, media_connector.MEDIA_CONNECTOR) != media_connector.MEDIA_CONNECTOR:
        print(f"vllm-prune: {MEDIA_CONNECTOR} is set; the section `media` guards nothing", flush=True)
    elif not has_flag(arguments, "--api-server-count"):
        # While the engine loads: later, the first image would wait for it.
        media_connector.load_server_object("decode_pool")().start()


def _trace_crashes() -> None:
    """Most crashes in native code leave nothing in the log otherwise; vLLM forks some processes and spawns others."""
    if os.environ.setdefault("PYTHONFAULTHANDLER", "1") and sys.stderr is not None:
        faulthandler.enable()
