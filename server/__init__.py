"""The server: vLLM's own OpenAI layers, with the `pruning` field, presets, health and metrics around them."""
