"""Log lines, trace spans and ids of requests."""
