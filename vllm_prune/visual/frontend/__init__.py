"""The API process's half of visual pruning: per-item budgets, placeholder counts, cache keys."""
