"""Visual-token pruning: what is kept of an image or a video, and where the kept tokens stand."""
