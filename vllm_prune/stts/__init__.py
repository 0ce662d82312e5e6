"""STTS (arXiv 2603.18004): cells of the vision tower scored by a trained module, early in the tower."""
