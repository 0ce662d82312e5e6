"""`python -m benchmarks.report`: write the generated parts of the documentation from the committed results."""

import typer

from . import write

typer.run(write)
