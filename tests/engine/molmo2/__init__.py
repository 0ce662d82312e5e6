"""A tiny Molmo2: checkpoint, stand-in for the processor that its real checkpoints bring along, and an oracle."""
