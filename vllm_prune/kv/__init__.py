"""KV eviction: after prefill and during decode the cache of a request is compacted and its blocks go back."""
