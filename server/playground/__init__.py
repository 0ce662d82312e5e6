"""The page on which budgets are chosen by looking: its built bundle in `dist`, and the route that serves it."""
