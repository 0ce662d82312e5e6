"""Choosing visual tokens inside a vision tower, and running the rest of it on the kept ones."""
