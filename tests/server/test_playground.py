"""The page in Chromium on a real server: overlay, bitmap and engine agree, and a newcomer's way works as described.

The other tests of the page, in tests/playground, use a server of known answers.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from benchmarks.servers import Server
from vllm_prune.cli.kept_overlay import unpacked

from ..playground.conftest import WIDE, Site, Watched, browser, page, previews, watch, watched  # noqa: F401
from ..playground.page_parts import (
    EXAMPLES,
    Browser,
    Page,
    Previews,
    Response,
    ask,
    choose,
    column,
    drawn_flags,
    example,
    expect,
    flags_of,
    number,
    overlay,
    slide,
    usage_of,
)
