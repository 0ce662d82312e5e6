from __future__ import annotations

from vllm_prune.cli.host import preload_list


def test_preloading_never_mixes_two_openmp_runtimes() -> None:
    found = ["/usr/lib/libtcmalloc.so.4", "/venv/lib/libiomp5.so"]
    assert preload_list("", found) == found
    assert preload_list("/x/libfaketime.so", found) == [*found, "/x/libfaketime.so"]
    for runtime in ("/torch/lib/libgomp.so.1", "/opt/libomp.so", "/opt/libiomp5.so"):
        assert preload_list(f"{runtime}:/x/y.so", found) == [found[0], runtime, "/x/y.so"]
    mine = "/opt/libtcmalloc_minimal.so.4 /torch/lib/libgomp.so.1"
    assert preload_list(mine, found) == mine.split()
    assert preload_list("", []) == []
