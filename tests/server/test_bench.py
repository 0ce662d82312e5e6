"""`vllm-prune bench` on a running server, as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.servers import Server, free_port

COMMAND = str(Path(sys.executable).parent / "vllm-prune")


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, "bench", *arguments], capture_output=True, text=True, timeout=200,
        env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip


def test_classes_of_a_mixed_load(server: Server, tmp_path: Path) -> None:
    finished = server.metric("vllm:request_success_total")
    kept = server.metric("vllm_prune_visual_tokens_kept_total")
    out = tmp_path / "bench.json"
    found = bench("--url", server.url, "--mix", "off,0.5,kv:0.2,@fast", "--requests", "16", "--tokens", "12",
                  "--width", "280", "--height", "196", "--concurrency", "4", "--out", str(out))  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert "16/16" in found.stderr  # the progress bar
    assert server.metric("vllm:request_success_total") == finished + 16
    report = json.loads(out.read_text())
    rows = {row["class"]: row for row in report["classes"]}
    assert list(rows) == ["off", "0.5", "kv:0.2", "@fast", "all"]
    assert [rows[name]["requests"] for name in rows] == [4, 4, 4, 4, 16]
    # 10 x 7 cells.
    assert [rows[name]["visual_kept_tokens"] for name in ("off", "0.5", "kv:0.2", "@fast")] == [70, 35, 70, 17]
    assert rows["all"]["visual_input_tokens"] == 70
    assert server.metric("vllm_prune_visual_tokens_kept_total") == kept + 4 * (70 + 35 + 70 + 17)
    assert rows["0.5"]["prompt_tokens"] == rows["off"]["prompt_tokens"] - 35
    assert rows["kv:0.2"]["kv_evicted_rows"] > 0
    assert rows["off"]["kv_evicted_rows"] == 0
    for row in rows.values():
        assert row["failed"] == 0
        assert row["output_tokens"] == 12
        for key in ("ttft", "itl", "e2e"):
            assert 0 < row[f"{key}_p50_ms"] <= row[f"{key}_p95_ms"] <= row[f"{key}_p99_ms"]
        assert row["ttft_p50_ms"] < row["e2e_p50_ms"]
    assert report["peaks"]["samples"] > 0
    assert "kv:0.2" in found.stdout


def test_a_budget_that_the_server_refuses_is_counted_and_shown(server: Server, tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    found = bench("--url", server.url, "--mix", "off,best:0.5", "--requests", "4", "--tokens", "2", "--width", "112",
                  "--height", "112", "--out", str(out))  # fmt: skip
    assert found.returncode == 0, found.stderr
    rows = {row["class"]: row for row in json.loads(out.read_text())["classes"]}
    assert (rows["off"]["failed"], rows["best:0.5"]["failed"], rows["all"]["failed"]) == (0, 2, 2)
    assert "unknown strategy 'best'" in found.stdout.replace("\n", " ")


def test_what_cannot_be_loaded_is_said(server: Server) -> None:
    for arguments, message in (
        (("--url", server.url, "--mix", "half"), "'half' is no budget"),
        (("--url", f"http://127.0.0.1:{free_port()}"), "no server at"),
        (("--url", server.url, "--width", "8"), "at least 56 pixels"),
    ):
        found = bench(*arguments)
        assert found.returncode == 2
        assert message in found.stderr
