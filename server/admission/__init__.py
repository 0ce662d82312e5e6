"""Admission: what is in flight, what waits, how large a request is, and its tenant."""
