"""The bundled demo model: a small Qwen2.5-VL trained on generated tasks; a test instrument, not a product."""
