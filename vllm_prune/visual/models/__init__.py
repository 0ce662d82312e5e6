"""The worker's half: one adapter per model family."""
