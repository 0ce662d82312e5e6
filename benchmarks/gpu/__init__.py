"""What `benchmarks/gpu.sh` runs: correctness and speed on one GPU, in one command of at most ten minutes."""
