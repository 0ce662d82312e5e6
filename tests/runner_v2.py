"""vLLM's CPU runner of the second generation (Model Runner V2) on a machine without a Triton that compiles for CPUs.

vLLM ships that runner, with its own stand-ins for streams, events and pinned memory; what a CPU lacks is a Triton
backend named "cpu". Here it is one whose kernels are run by Triton's interpreter. For tests only.

`install` prepares this process and all Pythons that it starts: spawned workers, servers, programs of tests. Nothing
heavy is imported before somebody imports Triton.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

WANTED = "PRUNE_TESTS_RUNNER_V2"
"""Set for this process and its children once `install` has run."""
ASYNCHRONOUS = "PRUNE_TESTS_ASYNC"
"""Set for children whose engine shall schedule asynchronously, as on CUDA."""
VARIABLES = {WANTED: "1", "TRITON_INTERPRET": "1", "TRITON_DEFAULT_BACKEND": "cpu", "VLLM_USE_V2_MODEL_RUNNER": "1"}
SITE = Path(__file__).parent / "engine" / "sitecustomize"
"""Folder of the module that Python imports when it starts."""

MECHANISMS = {
    "KV eviction is exact": "test_kv_exact.py::test_logits_are_those_of_the_masked_reference[qwen2_5_vl]",
    "scheduling a step ahead": "test_kv_async.py::test_answers_are_those_of_the_masked_reference",
    "every row moved, preemption": "test_kv_async.py::test_preempted_requests_are_compacted_anew",
    "two ranks in processes of their own": "test_kv_parallel.py::test_two_ranks_answer_as_one",
    "observed queries and norms": "test_kv_observation.py::test_views_hold_what_transformers_computes[qwen3_vl-chunks]",
    "several cache groups": "test_kv_groups.py::test_answers_are_the_same_when_steps_are_scheduled_ahead[qwen3_5]",
    "windows wait for room": "test_kv_windows.py::test_windows_wait_for_room_and_answer_as_alone",
    "shared blocks": "test_kv_sharing.py::test_neighbours_and_later_requests_are_answered_as_by_fresh_servers",
    "leaks": "test_kv_leaks.py::test_requests_leave_nothing_behind[200]",
    "off costs nothing": "test_kv_off.py::test_without_a_budget_nothing_is_added",
    "visual budgets": "test_batches.py::test_together_as_alone[qwen3_vl]",
    "preempted visual budgets": "test_preemption.py::test_preempted_requests_answer_the_same[qwen2_5_vl-prefix cache]",
    "cuts inside the tower": "test_tower_cut.py::test_cuts_and_whole_items_share_a_batch[qwen2_5_vl]",
    "stts": "test_stts.py::test_a_batch_of_many_budgets[qwen3_vl]",
    "Molmo2": "test_molmo2.py::test_one_call_of_the_tower_for_many_budgets",
}
"""Tests of tests/engine that `make test` runs on V2, too; `make test RUNNER=v2` runs all of them there."""


def is_on() -> bool:
    """Whether engines of this process and of its children run on V2."""
    return WANTED in os.environ


def install() -> None:
    """Run the engines of this process, and of those that it starts, on V2.

    Raises:
        RuntimeError: Triton is imported already, and its own functions are not made for the interpreter.
    """
    if "triton" in sys.modules and not is_on():
        raise RuntimeError("Triton was imported before its interpreter was chosen; install Runner V2 earlier")
    os.environ.update(environment(os.environ))
    watch_imports()


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables of a child process on V2, from those that it would get otherwise."""
    path = [part for part in variables.get("PYTHONPATH", "").split(os.pathsep) if part and part != str(SITE)]
    return {**variables, **VARIABLES, "PYTHONPATH": os.pathsep.join([str(SITE), *path])}


def in_child(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables of a child process that a test starts with a `PYTHONPATH` of its own, on the runner of this one."""
    return environment(variables) if is_on() else dict(variables)


def watch_imports() -> None:
    """Complete modules as they are imported. Once per process, which may have loaded this module twice."""
    AfterImport.install("Runner V2", COMPLETED.get)


@contextmanager
def asynchronous_scheduling() -> Iterator[None]:
    """Engines that start meanwhile schedule a step ahead, as on CUDA; vLLM's CPU platform switches that off."""
    from vllm.platforms.cpu import CpuPlatform

    original = CpuPlatform.__dict__["check_and_update_config"]
    _schedule_ahead(CpuPlatform)
    try:
        yield
    finally:
        CpuPlatform.check_and_update_config = original


def _schedule_ahead(platform: Any) -> None:
    original = platform.check_and_update_config

    def check_and_update_config(cls: Any, vllm_config: Any) -> None:
        original(vllm_config)
        vllm_config.scheduler_config.async_scheduling = True

    platform.check_and_update_config = classmethod(check_and_update_config)


def _add_backend(module: Any) -> None:
    """Let Triton know a backend for CPUs; nothing is ever compiled by it."""
    from triton.backends.compiler import GPUTarget

    class Driver(module.DriverBase):  # type: ignore[misc]
        @classmethod
        def is_active(cls) -> bool:
            return True

        def map_python_to_cpp_type(self, ty: str) -> str:
            return ty

        def get_current_target(self) -> Any:
            return GPUTarget("cpu", 0, 1)

        def get_current_device(self) -> int:
            return 0

        def set_current_device(self, device: int) -> None:
            pass

        def get_current_stream(self, device: int | None = None) -> int:
            return 0

        def get_active_torch_device(self) -> Any:
            import torch

            return torch.device("cpu")

        def get_device_interface(self) -> Any:
            import torch

            return torch.cpu

        def get_benchmarker(self) -> Any:
            raise NotImplementedError("the interpreter's speed says nothing about a kernel's")

    module.backends["cpu"] = module.Backend(compiler=module.backends["nvidia"].compiler, driver=Driver)


def _hasten(module: Any) -> None:
    """Twice as fast: no check of every sum for overflow, and the language is prepared once per kernel.

    Triton's interpreter prepares the modules that a function sees again for each function that a kernel calls.
    """
    module.interpreter_builder.options = module.InterpreterOptions(sanitize_overflow=False)
    every, prepare = SimpleNamespace(__globals__={"tl": module.tl, "core": module.tl.core}), module._patch_lang
    module._patch_lang = lambda function: prepare(every)
    module.InterpretedFunction.__call__ = lambda self, *args, **kwargs: self.rewrite()(*args, **kwargs)


def _complete_platform(module: Any) -> None:
    if ASYNCHRONOUS in os.environ:
        _schedule_ahead(module.CpuPlatform)


COMPLETED: dict[str, Callable[[ModuleType], None]] = {
    "triton.backends": _add_backend,
    "triton.runtime.interpreter": _hasten,
    "vllm.platforms.cpu": _complete_platform,
}
"""What is done to a module once its body has run."""


class AfterImport(importlib.abc.MetaPathFinder):
    """Leaves finding to the others, and calls a function with a module as soon as its body has run.

    Args:
        purpose: what for.
        function_of: the function for the module of a name, or None.
    """

    def __init__(self, purpose: str, function_of: Callable[[str], Callable[[ModuleType], None] | None]) -> None:
        self.purpose, self.function_of = purpose, function_of

    @classmethod
    def install(cls, purpose: str, function_of: Callable[[str], Callable[[ModuleType], None] | None]) -> bool:
        """Watch the imports from now on; returns False where the process does so for that purpose already."""
        if any(getattr(finder, "purpose", None) == purpose for finder in sys.meta_path):
            return False
        sys.meta_path.insert(0, cls(purpose, function_of))
        return True

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """See the base class."""
        complete = self.function_of(fullname)
        if complete is None:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next((spec for finder in others if (spec := finder.find_spec(fullname, path, target))), None)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            run = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                run(module)
                complete(module)

            loader.exec_module = exec_module
        return spec
