"""The `vllm-prune` command."""
