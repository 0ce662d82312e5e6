"""Where vLLM's OpenAI dialect needs help: request quirks, error bodies, the published schema."""
