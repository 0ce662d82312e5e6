"""Can this run here? Findings about the served model, its engine and its workers."""
