"""Adapters to vLLM's model runners."""
