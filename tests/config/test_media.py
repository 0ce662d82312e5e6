from __future__ import annotations

import pytest
from pydantic import ValidationError

from vllm_prune.config.media import Media


def test_a_full_request_fits_into_the_queue() -> None:
    assert Media(max_items=4, max_waiting=4).max_waiting == 4
    with pytest.raises(ValidationError, match=r"max_waiting \(3\) is below max_items \(4\)"):
        Media(max_items=4, max_waiting=3)
