"""Room for requests: what is in flight, who waits, how large a request is, and whose key it came with."""
