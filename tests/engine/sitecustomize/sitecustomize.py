"""Imported by every Python that a test on Runner V2 starts, as `tests/runner_v2.py` puts this folder first."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

if "PRUNE_TESTS_RUNNER_V2" in os.environ:
    _spec = importlib.util.spec_from_file_location("runner_v2_of_tests", Path(__file__).parents[2] / "runner_v2.py")
    assert _spec is not None
    assert _spec.loader is not None
    _module = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(_module)
    _module.watch_imports()
