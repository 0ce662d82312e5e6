"""What the plugin does in every process that vLLM starts."""

from __future__ import annotations

import sys

from .base_renderer import patch_base_renderer, patch_offline_renderer
from .environment import declare_variables
from .input_processor import patch_input_processor
from .media_connector import register_media_connector
from .model_config import patch_model_config
from .output_processor import patch_output_processor
from .renderer import patch_renderer
from .request_owner import mark_serving_renderers
from .serve_command import refuse_rust_front_end
from .serving_tokens import patch_serving_tokens
from .version import check_version


def register_models() -> None:
    """Put our adapters in vLLM's registry; in a serving process also listen to requests. Idempotent.

    Raises:
        UnsupportedVersion: an unknown vLLM.
        OtherFrontEnd: a serving process that is about to start vLLM's Rust front end.
    """
    register_adapters()
    if any(name.startswith(("vllm.entrypoints.cli", "vllm.entrypoints.launchers")) for name in sys.modules):
        refuse_rust_front_end()
        patch_server()
    elif "vllm.v1.engine.input_processor" in sys.modules:
        # An engine in its caller's process: a malformed KV budget is that caller's error.
        patch_input_processor()
        patch_offline_renderer()


def register_adapters() -> None:
    """Put our adapters in vLLM's registry. Idempotent; raises `UnsupportedVersion`."""
    check_version()
    declare_variables()
    from vllm import ModelRegistry

    from ..visual.models.table import ADAPTERS
    from .amx import permit_tiles
    from .prometheus_files import reserve_metric_files

    reserve_metric_files()
    permit_tiles()
    patch_model_config()
    for architecture, target in ADAPTERS.items():
        ModelRegistry.register_model(architecture, target)


def patch_server() -> None:
    """Patch what requests pass in a process that serves HTTP."""
    from .chat_content import patch_chat_content
    from .processing_context import patch_processing_context

    mark_serving_renderers()
    patch_base_renderer()
    patch_renderer()
    patch_chat_content()
    patch_processing_context()
    patch_input_processor()
    patch_serving_tokens()
    patch_output_processor()
    register_media_connector()
