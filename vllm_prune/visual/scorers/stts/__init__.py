"""The scorer of STTS (arXiv 2603.18004): model, files, training."""
