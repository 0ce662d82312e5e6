"""The only place that patches objects of vLLM; a module is named after the object."""
