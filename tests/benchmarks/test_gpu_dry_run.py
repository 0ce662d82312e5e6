"""`benchmarks/gpu.sh` as it would run on a GPU, with tiny models on a CPU, where nothing of ours is installed.

The second model takes a minute and runs the code of the first: it is there with `DRY_RUN=full`. That vLLM takes
its servers' arguments is tested elsewhere (`test_gpu_runner`).
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
EVERY_STEP = ("machine", "exact", "visual_qwen2_5_vl", "kv", "tower", "visual_qwen3_vl", "kernels")
SECOND = "visual_qwen3_vl"
FULL = os.environ.get("DRY_RUN") == "full"
STEPS = tuple(name for name in EVERY_STEP if FULL or name != SECOND)
BUDGETS = ("off", *(f"keep {keep} {place} the tower" for place in ("behind", "in") for keep in ("50%", "25%")))
pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All packages of this environment but ours, as a folder that holds an unpacked vLLM would have them."""
    folder = tmp_path_factory.mktemp("packages")
    (packages,) = {path for path in map(Path, sys.path) if path.name == "site-packages" and (path / "vllm").exists()}
    shim = "vllm_prune_torchvision"
    for path in packages.iterdir():
        if path.name == f"{shim}_shim.py" or ("vllm_prune" not in path.name and path.suffix != ".pth"):
            (folder / path.name).symlink_to(path)
    # Where torchvision's binaries do not fit, set-up mends it by a file that only installed packages may have.
    if (packages / f"{shim}.pth").exists():
        (folder / "sitecustomize.py").write_text((packages / f"{shim}.pth").read_text())
    return folder


def run(site: Path, out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The script, by the interpreter below this environment."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VLLM", "LD_"))}
    environment |= {"OUT": str(out), "SITE": str(site), "PYTHON": sys._base_executable}  # type: ignore[attr-defined]
    return subprocess.run(
        [str(ROOT / "benchmarks" / "gpu.sh"), "--scale", "tiny", *arguments], cwd=out, env=environment,
        capture_output=True, text=True, timeout=1400,
    )  # fmt: skip


@pytest.fixture(scope="module")
def dry(site: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """The steps, and one more that fails on purpose."""
    out = tmp_path_factory.mktemp("results")
    chosen = (word for name in STEPS for word in ("--step", name))
    return run(site, out, "--seconds", "1300", "--control", *chosen), out


def read(out: Path, name: str) -> dict[str, Any]:
    def no_constant(text: str) -> float:
        raise AssertionError(f"{name}.json has {text}")

    return dict(json.loads((out / f"{name}.json").read_text(), parse_constant=no_constant))


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from numbers(one)
    elif isinstance(value, float):
        yield value


def test_every_step_ran_but_the_one_that_fails(dry: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    done, out = dry
    states = {line["step"]: line["status"] for line in read(out, "summary")["steps"]}
    why = done.stdout[-3000:] + done.stderr[-3000:]
    assert states == {**dict.fromkeys(STEPS, "ok"), "control": "failed"}, why
    assert done.returncode == 1
    assert "results in" in done.stdout
    for name in STEPS:
        found = read(out, name)
        assert {"hardware", "command", "status", "seconds", "problems", "site"} <= found.keys()
        assert not found["problems"]
        assert all(map(math.isfinite, numbers(found)))
    assert "fails on purpose" in read(out, "control")["why"]
    assert "Traceback" in read(out, "control")["why"]


def test_what_only_a_gpu_runs_is_named(dry: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    _, out = dry
    kernels = read(out, "kernels")
    assert "no CUDA" in kernels["skipped"]["backends"]
    commands = kernels["commands"]
    assert [*commands] == ["FLASH_ATTN", "FLASHINFER", "TRITON_ATTN", "VLLM_GPU_SYNC_CHECK"]
    assert all(f"--attention-backend {name}" in commands[name] for name in ("FLASH_ATTN", "FLASHINFER", "TRITON_ATTN"))
    assert "no CUDA" in read(out, "kv")["skipped"]["v2"]


def test_off_is_stock_and_budgets_are_kept(dry: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    _, out = dry
    machine, exact = read(out, "machine"), read(out, "exact")["runners"]["v1"]
    assert "vllm_prune" in machine["plugins"]["vllm.general_plugins"]
    assert min(machine["speeds"]["flops"], machine["speeds"]["bytes"]) > 1e5
    assert (exact["off"]["different"], exact["off"]["control_noticed"]) == ([], True)
    assert exact["off"]["tokens_compared"] > 20
    assert len(exact["visual"]) == 4
    assert all(row["kv"]["evicted_tokens"] > 0 for row in exact["kv"].values())
    assert read(out, "kernels")["counts"]["tests"] > 0


def test_the_tower_is_accounted_for(dry: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    _, out = dry
    results = read(out, "tower")["results"]
    rows = {row["arm"]: row for row in results if "graphs" not in row}
    # Graphs need a GPU; what is measured with them is measured here without.
    assert [row["arm"] for row in results if "graphs" in row] == [*rows]
    assert all(row["request_ratio"] > 0 and row["over_eager"] > 0 for row in results if "graphs" in row)
    assert [*rows] == ["stock", "keep 50% in the tower", "keep 25% in the tower"]
    # Three blocks, of which the last is behind the cut and sees fewer patches.
    for name, share in (("stock", 1), ("keep 50% in the tower", 0.5)):
        assert rows[name]["block_rows"][-1] == share * rows[name]["block_rows"][0] == share * 4 * 18
    for row in rows.values():
        assert row["predicted_tower_ratio"] >= 1
        assert row["kernels"]
        assert row["tower"]["launch"] > 0


@pytest.mark.parametrize(
    ("step", "peer", "cell"), [("visual_qwen2_5_vl", "evs", 28), *[(SECOND, "vidcom2", 32)] * FULL]
)
def test_every_load_has_every_arm(
    dry: tuple[subprocess.CompletedProcess[str], Path], step: str, peer: str, cell: int
) -> None:
    _, out = dry
    cells = {(one["workload"], one["concurrency"]): one for one in read(out, step)["loads"]}
    assert [*cells] == [("video", 2), ("screenshot", 2), ("video", 1), ("screenshot", 1)]
    for (workload, _), one in cells.items():
        rows = {row["arm"]: row for row in one["rows"]}
        assert {"stock", *BUDGETS} <= rows.keys()
        assert (f"{peer} 25%" in rows) == (workload == "video")
        assert one["rounds"] >= 1
        tokens = one["visual_tokens"]
        assert rows["keep 50% in the tower"]["kept_visual_tokens"] == tokens // 2
        # The media have the size that they should have, and stock's own pruning drops tokens, too.
        assert rows["off"]["prompt_tokens"] - rows["keep 50% behind the tower"]["prompt_tokens"] == tokens - tokens // 2
        assert rows["off"]["prompt_tokens"] == rows["stock"]["prompt_tokens"]
        if workload == "video":
            assert rows[f"{peer} 25%"]["prompt_tokens"] < rows["stock"]["prompt_tokens"]
        for row in rows.values():
            assert row["requests_per_second"] > 0
            assert 0 < row["ttft_p50_ms"] <= row["ttft_p95_ms"] <= row["ttft_p99_ms"]
            # vLLM sends the tokens that a slow client has not taken as one event, and one event has no gap.
            if row["itl_p50_ms"] is not None:
                assert 0 < row["itl_p50_ms"] <= row["itl_p99_ms"]
            assert row["ratio_bound"] >= 1
            assert 0 <= row["kv_peak"] <= 1
        assert rows["stock"]["throughput_ratio"] == 1
        gaps = [row["itl_p50_ms"] for row in rows.values()]
        assert len(gaps) > 2 * gaps.count(None)


def test_kv_budgets_evict(dry: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    _, out = dry
    found = read(out, "kv")["runners"]["v1"]
    assert {*found} == {"tight", "ample", "long"}
    for name, arms in (("tight", ("gui_kv",)), ("ample", ("gui_kv", "snapkv"))):
        rows = {row["arm"]: row for row in found[name]["rows"]}
        evicted = [row for arm, row in rows.items() if arm.startswith("kv")]
        assert len(evicted) == len(arms)
        assert all(row["evicted_rows"] > 0 and row["compaction_share"] > 0 for row in evicted)
    assert found["long"]["capped"]["kv"]["compactions"] >= 1
    assert found["long"]["capped"]["end_over_start"] > 0


def test_a_run_without_a_failure_exits_with_zero(site: Path, tmp_path: Path) -> None:
    done = run(site, tmp_path, "--step", "kernels")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line["status"] for line in read(tmp_path, "summary")["steps"]] == ["ok"]
    assert run(site, tmp_path, "--step", "nonsense").returncode == 2
