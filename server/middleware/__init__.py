"""ASGI middleware around vLLM's application, one module per step of a request's way."""
