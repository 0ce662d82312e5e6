"""`python -m benchmarks.report`."""

from . import write

write()
