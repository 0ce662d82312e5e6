"""Other libraries on the demo model's tasks, beside ours: `python -m benchmarks.peers`."""
