"""Which strategy is compared with which file of whom, on which cases."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from . import kv, visual
from .authors import Source, load
from .cases import Case, cases
from .kv import kv_cases
from .vqtoken import Groups

APACHE, BSD, NONCOMMERCIAL = "Apache-2.0", "BSD-3-Clause", "CC BY-NC 4.0"


@dataclass(frozen=True)
class Entry:
    """A strategy, its authors' files and the cases.

    Attributes:
        sources: in the order in which they are loaded; each may import what those before define.
        theirs: what the authors' code keeps, from what the last file defines and a case.
        exact: cases in which ours approximates nothing.
        usual: cases as they are served, with the sketch and with picks in blocks or segments; None where nothing is
            approximated.
        note: what the strategy does otherwise, and why.
        options: of ours.
        names: stand in for what the files import.
        prepare: makes of a case the one that both see.
        objective: what the method maximises, of a case and what was kept; for methods whose first picks decide all.
        mine: what ours keeps, from its name, a case and a count, where it is not the strategy's choice among cells.
    """

    sources: tuple[Source, ...]
    theirs: Callable[[Mapping[str, Any], Any], Tensor]
    exact: Callable[[], Iterable[Any]]
    usual: Callable[[], Iterable[Any]] | None
    note: str
    options: Mapping[str, Any] = field(default_factory=dict)
    names: Callable[[], dict[str, Any]] = dict
    prepare: Callable[[Any], Any] = lambda case: case
    objective: Callable[[Case, Tensor], float] | None = None
    mine: Callable[[str, Any, int], Tensor] | None = None

    def code(self, directory: Path) -> dict[str, Any]:
        """What the authors' files define."""
        names = self.names()
        for source in self.sources:
            names |= load(source.read(directory), source.path(directory), names)
        return names

    def ours(self, name: str, case: Any, count: int) -> Tensor:
        """What the strategy of that name keeps, as many as theirs."""
        if self.mine is not None:
            return self.mine(name, case, count)
        if isinstance(case, Case):
            return visual.ours(name, case, count, self.options)
        return kv.ours(name, case)


def _images(width: int, *keeps: float) -> Callable[[], Iterable[Case]]:
    return lambda: cases([(1, 24, 24), (4, 12, 12)], [width], keeps, 2)


def _videos(width: int, *keeps: float) -> Callable[[], Iterable[Case]]:
    return lambda: cases([(12, 10, 10), (9, 10, 10)], [width], keeps, 3)


def _caches(group: int) -> Callable[[], Iterable[Any]]:
    return lambda: kv_cases([1, 3], [0.1, 0.2, 0.4], group, 3)


def _equal_text(case: Case) -> Case:
    """One of the two versions of their code weighs words by the length of their embeddings, the other by nothing."""
    assert case.context.text is not None
    return replace(case, context=replace(case.context, text=normalize(case.context.text, dim=-1)))


def smallest_distance(case: Case, kept: Tensor) -> float:
    """One minus the largest cosine between two kept cells."""
    units = normalize(case.tokens[kept].double(), dim=-1)
    return float(1 - (units @ units.T).fill_diagonal_(-1).max())


def volume(case: Case, kept: Tensor) -> float:
    """Geometric mean per kept cell of the determinant of CDPruner's kernel, with a ridge that keeps it positive."""
    assert case.context.text is not None
    units = normalize(case.tokens.double(), dim=-1)
    relevance = (units @ normalize(case.context.text.double(), dim=-1).T).mean(1)
    relevance = (relevance - relevance.min() + 1e-6) / (relevance.max() - relevance.min())
    rows = (units * relevance[:, None])[kept]
    kernel = rows @ rows.T + 1e-6 * torch.eye(len(kept), dtype=torch.float64)
    return float((torch.logdet(kernel) / len(kept)).exp())


def _star(name: str, blob: str) -> Source:
    commit = "9f36ecf36a96198e92e3056e8061ac1d684fd6aa"
    return Source("STaR-KV", commit, NONCOMMERCIAL, f"starkv/{name}.py", blob)


def _vqtoken(file: str, blob: str) -> Source:
    return Source("VQToken", "019f89fd877fb7c28f771e8e33b4d3a34aa28e09", BSD, f"VQToken/{file}", blob)


_GROUPS = Groups()


def _rkv(file: str, blob: str) -> Source:
    return Source("R-KV", "d15c9767e67c2bd9807128fecc35223fa2484a69", APACHE, f"rkv/{file}", blob)


ENTRIES: dict[str, Entry] = {
    "aot": Entry(
        (
            Source(
                "AOT", "88455ee3ebd80eff65c55dfe434e8b21daf05e76", APACHE,
                "LLaVA-NeXT/llava/model/llava_arch.py", "46d18bf4bdd2bd972e21bdc553c3d29cfb2e56bb",
                "    def prepare_inputs_labels_for_multimodal",
            ),
        ),
        visual.aot,
        lambda: cases([(4, 27, 27)], [96], [126 / 729], 3),
        lambda: cases([(4, 27, 27)], [512], [126 / 729], 2),
        "one layer of attention for both kinds of anchors; a fixed number of Sinkhorn steps where theirs stop early",
    ),
    "cdpruner": Entry(
        (
            Source(
                "CDPruner", "9541616c40fcd5625de1cdb8ea6c33c129eb7864", APACHE,
                "llava/model/llava_arch.py", "fa6550433722016ebe460000889c3d65d8605d34",
            ),
        ),
        visual.cdpruner,
        lambda: cases([(1, 20, 20), (4, 10, 10)], [96], [0.08, 0.16], 3),
        _images(512, 0.25),
        "a ridge in the kernel decides where picks add next to nothing; more than 64 picks are made per segment. "
        "Theirs takes CLIP's cosines negative, here the language model's are taken as they are",
        objective=volume,
    ),
    "divprune": Entry(
        (
            Source(
                "divprune", "799e2d950aa01ba7860907f5a6d86061f885dca6", NONCOMMERCIAL,
                "LLaVA/llava/model/llava_arch.py", "5df2de4d639bbe7c2f737fd4fc3c441ff61910e2",
            ),
        ),
        visual.divprune,
        lambda: cases([(1, 16, 16)], [96], [0.1, 0.25, 0.5], 3),
        _images(512, 0.1, 0.25),
        "over a whole video the first pick is the visual token farthest from the mean, and another first pick changes "
        "most of those that follow; large K is chosen in segments",
        objective=smallest_distance,
    ),
    "fastvid": Entry(
        (
            Source(
                "FastVID", "a40a109cb8df20e8c2c17c6850f8269717369990", "MIT",
                "fastvid_llavaonevision/LLaVA-NeXT/llava/model/language_model/modeling_qwen2.py",
                "01479961ceaf2ccd9f1711641d17b3fc9b77069a",
            ),
        ),
        visual.fastvid,
        _videos(96, 0.1, 0.2),
        _videos(512, 0.1, 0.2),
        "shares are rounded to an exact K; frames' mean tokens stand for the features of a head of the tower's",
    ),
    "flashvlm": Entry(
        (
            Source(
                "FlashVLM", "e1a80e87f8bbc16c17f2327263941139b7a64f40", "MIT",
                "llava/model/llava_arch.py", "941558f0336f6061a13713beb46332c490524218",
            ),
        ),
        visual.flashvlm,
        _images(96, 0.1, 0.25),
        _images(512, 0.1, 0.25),
        "half of K by score is the same (1/3 is that half alone); in the other half a swap of two equal likenesses "
        "changes every later pair",
        prepare=_equal_text,
    ),
    "gui_kv": Entry(
        (
            Source(
                "GUI-KV", "b301d413e67143387f995941f6739a7c7a839461", NONCOMMERCIAL,
                "gui_kv/gui_kv_utils.py", "a28c65e5cd6ebbd9efc27228093a0542641636c2",
            ),
        ),
        kv.gui_kv,
        _caches(1),
        None,
        "theirs chooses for every query head, here every KV head has one choice",
    ),
    "holitom": Entry(
        (
            Source(
                "HoliTom", "e9b2972f6895c9e7d7fe74eb8c3a2ecaab8056e0", APACHE,
                "holitom/llava_arch.py", "463b22c2bbba8c0569b35005913a969248f2bbfb",
            ),
        ),
        visual.holitom,
        _videos(96, 0.1, 0.2),
        _videos(512, 0.1, 0.2),
        "theirs rounds the share of every frame up, here shares are rounded to an exact K",
    ),
    "idpruner": Entry(
        (
            Source(
                "AngelSlim", "67394ce55f6b6cfae702575fbc3c7a05c13fdd74", APACHE,
                "angelslim/compressor/token_compressor/algorithm/idpruner.py",
                "4c166c6e166d9bae0c3ad1c12056c0c1e37b505c",
            ),
        ),
        visual.idpruner,
        _images(96, 0.05),
        _images(512, 0.1, 0.25),
        "on a sketch, and in blocks from the 33rd pick on",
        options={"importance": "selector"},
        names=visual.idpruner_names,
    ),
    "r_kv": Entry(
        (
            _rkv("utils.py", "43c06252fcfecc98bba46ca7cb5615437ae9ce72"),
            _rkv("compression/r1_kv.py", "a4f75877f81dab49253f2369d32d281b791b4841"),
        ),
        kv.r_kv,
        _caches(2),
        None,
        "none",
    ),
    "snapkv": Entry(
        (
            Source(
                "SnapKV", "e216ddc84c5bd210378cbdbbba12ba02102aa640", APACHE,
                "snapkv/monkeypatch/snapkv_utils.py", "d49145da0ee6ab0cb8745d8b01878a4c90e6e3de",
            ),
        ),
        kv.snapkv,
        _caches(1),
        None,
        "theirs chooses for every query head, here every KV head has one choice",
    ),
    "star_kv": Entry(
        (
            _star("starkv_utils", "6eb502acaac3397820d6227f51a76729ba75c3cf"),
            _star("starkv_mi", "133c97bb4ca6c4536d98cbef320c6b9cf743af10"),
            _star("starkv_aeb", "26f4ad25913794c9de48fa9b3a817e4d6a8c8a87"),
            _star("starkv_temporal", "8c319d5d766672e110779a4a2daaa5f49892b614"),
            _star("starkv_group_cluster", "20d7fb84f4a03a346214c56f3e5d4fb6de46c6c5"),
        ),
        kv.star_kv,
        _caches(2),
        None,
        "profiles are the request's own, not running over requests; weighted scores of all heads are summed, where "
        "theirs weighs the mean of all by the head that scores a row most",
    ),
    "vcast": Entry(
        (
            Source(
                "V-CAST", "c235ef3c0a88a77edf5e84956a02d90d718325c6", "MIT and Apache-2.0",
                "compressor/v_cast/modeling_qwen3_vl_v_cast.py", "dfc3f9bcfc6ff1c1f75e68fe82c26f72944efdd1",
            ),
        ),
        visual.vcast,
        _videos(96, 0.1, 0.25),
        _videos(512, 0.1, 0.25),
        "what rounding leaves over goes to the largest remainders; theirs gives all of it to one frame",
    ),
    "vidcom2": Entry(
        (
            Source(
                "VidCom2", "944a17d14f4848ad080a65eab2b0711a760fa154", APACHE,
                "token_compressor/vidcom2/vidcom2.py", "555852064be59ea6b14e1801812297057a19ab62",
            ),
        ),
        visual.vidcom2,
        _videos(96, 0.1, 0.25),
        _videos(512, 0.1, 0.25),
        "vLLM's exact count; theirs keeps what its rounding of the frames' shares comes to",
    ),
    "vqtoken": Entry(
        (
            _vqtoken("cluster.py", "441feca46a44f10915dc45060a221fbab96a059b"),
            _vqtoken("vq_attn.py", "f08a61daca26f39e46a4ee0c8e1332b0e6775866"),
            _vqtoken("vq_token.py", "53de2f6168959258cfb6796ec337169dbefeb403"),
        ),
        _GROUPS.make,
        lambda: cases([(4, 7, 7), (12, 10, 10)], [96], [0.08, 0.1], 3),
        lambda: cases([(12, 10, 10)], [512], [0.05, 0.25], 2),
        "compared are the group of each patch, from the same first centers, and the rows that random weights make of "
        "their groups; of nearly equal patches rounding decides, and more than 128 groups are formed on a sketch",
        mine=_GROUPS.compare,
    ),
}  # fmt: skip
