"""Fixtures of the tests that run a real vLLM engine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Read by vLLM when it is imported, so they are set before anything here can import it.
os.environ.update(
    HF_HUB_OFFLINE="1",
    VLLM_CPU_CI_ENV="1",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_NO_USAGE_STATS="1",
)

import pytest
import torch
from safetensors.torch import save_file

from tests.gate_weights import gate_weights

from . import media
from .checkpoints import FAMILIES, TEXT, build
from .engines import EnginePool
from .eviction import EVICTING
from .families import rows
from .oracle import Oracle


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Side by side, each process takes a family or a whole file, as starting an engine takes longer than most tests."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
            item.add_marker(pytest.mark.xdist_group(str(parameters.get("family", item.path.stem))))


@pytest.fixture(scope="session", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """Model family; session-wide, so that pytest runs all tests of one family before it turns to the next."""
    return request.param


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folder of the tiny checkpoint of each family, and of the demo model."""
    # Tensors this small are up to 80 times slower on two threads when the machine is busy. The engine keeps
    # what is set here.
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("checkpoints")
    built = {family: build(family, root / family) for family in FAMILIES}
    demo = Path(__file__).parents[2] / "benchmarks" / "demo_model" / "checkpoint"
    return _Checkpoints(root, {**built, "demo": demo})


class _Checkpoints(dict[str, Path]):
    """Folders by name; those of `families.rows` are written when they are first looked up."""

    def __init__(self, root: Path, built: dict[str, Path]) -> None:
        super().__init__(built)
        self._root = root

    def __missing__(self, name: str) -> Path:
        family = next(row for row in rows.ROWS if name in (row, rows.for_engine(row)))
        self[family] = rows.build(family, self._root / family)
        self[rows.for_engine(family)] = self._root / rows.for_engine(family)
        return self[name]


@pytest.fixture(scope="session")
def gates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random gates for the language models of the tiny checkpoints."""
    file: Path = tmp_path_factory.mktemp("gates") / "gates.safetensors"
    save_file(gate_weights(TEXT["num_hidden_layers"], TEXT["hidden_size"]), file)
    return file


@pytest.fixture(scope="session")
def summing(gates: Path) -> dict[str, Any]:
    """Options of an engine that sums up what strategies look at in whole prompts, which it computes in short chunks."""
    facts = {"prompt_queries": 2, "weights": {"dyvte": str(gates)}}
    return {"additional_config": {"vllm_prune": facts}, "max_num_batched_tokens": 96, **EVICTING}


@pytest.fixture(scope="session")
def oracles(checkpoints: dict[str, Path]) -> Callable[[str], Oracle]:
    """Gives the transformers oracle of a family, loaded once."""
    loaded: dict[str, Oracle] = {}

    def oracle(family: str) -> Oracle:
        if family not in loaded:
            loaded[family] = Oracle(checkpoints[family])
        return loaded[family]

    return oracle


@pytest.fixture(scope="session")
def engines(checkpoints: dict[str, Path]) -> Iterator[EnginePool]:
    """Starts engines on demand, one alive at a time."""
    pool = EnginePool(checkpoints)
    yield pool
    pool.close()


@pytest.fixture
def reported(checkpoints: dict[str, Path]) -> Callable[..., list[dict[str, Any]]]:
    """The front end's reports on a request from its processor alone, by family, media and budget."""
    from vllm.config import ModelConfig
    from vllm.multimodal import MULTIMODAL_REGISTRY
    from vllm.multimodal.processing import TimingContext
    from vllm.multimodal.processing.inputs import ProcessorInputs

    import vllm_prune
    from vllm_prune.visual.frontend.processor import REPORT

    vllm_prune.register()

    def report(family: str, shown: tuple[Any, ...], visual: media.Visual) -> list[dict[str, Any]]:
        config = ModelConfig(str(checkpoints[family]), dtype="float32", max_model_len=2048)
        processor = MULTIMODAL_REGISTRY.create_processor(config)
        request = media.ask(*shown, visual=visual)
        data = request.for_vllm()
        inputs = ProcessorInputs(
            processor.info.get_tokenizer().encode(request.prompt),
            processor.info.parse_mm_data(data["multi_modal_data"]),
            hf_processor_mm_kwargs=data["mm_processor_kwargs"],
        )
        found: list[dict[str, Any]] = processor.apply(inputs, TimingContext(enabled=False))[REPORT]
        return found

    return report
