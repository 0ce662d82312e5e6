"""Speed of budgets beside stock vLLM and its own pruning: arms, workloads, interleaved rounds and their summary.

`python -m benchmarks.speed` runs it on this machine, `benchmarks/gpu.sh` on a GPU.
"""
