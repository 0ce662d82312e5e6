"""Visual tokens that receive the most attention over several layers of the vision tower."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ._attention import AttentionOptions
from .recv_attn import RecvAttn


class VtcClsOptions(AttentionOptions):
    """Options of `vtc_cls`: those of `recv_attn`, over all blocks unless a request says how many."""

    tower_blocks: Annotated[int, Field(ge=1, le=128)] | None = None


class VtcCls(RecvAttn):
    """VTC-CLS (arXiv 2412.05819): attention summed over layers of the vision tower, the K highest kept.

    The authors sum what the class token gives. Towers that are served here have none, so what all patches of a frame
    give takes its place. Their layers run from one that they choose to the last but one. `skip_blocks: 1` leaves out
    the last; it is not the default, as a tower may have one block alone that attends to whole frames.
    """

    name = "vtc_cls"
    paper = "VTC-CLS, arXiv 2412.05819, with received attention for want of a class token"
    summary = "visual tokens that receive most attention over the layers of the vision tower"
    Options = VtcClsOptions
