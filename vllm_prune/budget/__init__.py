"""What may be asked for in the `pruning` field, its canonical form, and its arithmetic. Imports no torch."""
