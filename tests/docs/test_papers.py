"""Every system that the project set out from has its line, and every strategy its place among the others."""

from __future__ import annotations

import re

import pytest

from vllm_prune.catalogue import KV, VISUAL, entries

from .pages import ROOT

SEEDS = (
    "STTS", "GUI-KV", "SpaceVLLM", "ISTA-Net", "Spatio-temporal expressions by a perceptron",
    "Zero-shot spatio-temporal video grounding", "Moments in video collections", "CenterCLIP", "AOT", "Limits of RoPE",
    "AdaToken-3D", "LMTraj", "S5", "LITA", "Ming-UniVision", "NAR", "ZOO-Prune", "DynFrame",
    "One-dimensional ordered tokens", "LatentLens", "TrajTok", "TAD", "IDPruner", "ToDRE", "XTR", "PARCEL",
    "VideoFlexTok", "FrugalPrompt", "CoMPaSS", "READ", "TVTS", "Geospatial web search", "When Tokens Talk Too Much",
    "Sparsifiner", "CGCoT scoring", "ST-LINK", "Recycled Attention", "VQToken",
    "Implicit aggregation for place recognition", "QTSplus", "SPRIGHT", "PPE", "Critical tokens", "TrajViT", "ActQKV",
    "S2IP-LLM", "TempMe", "LLaVA-ST", "FlashVLM", "CaCoVID", "VTC-CLS", "xAR", "DyVTE",
)  # fmt: skip
BASELINES = {"none", "random"}
"""What the page's classes have no place for, as nothing decides."""


def lines(page: str) -> list[str]:
    return (ROOT / "docs" / page).read_text().splitlines()


def named(line: str) -> list[str]:
    """Systems in the first column of a table's row, without their numbers."""
    first = line.split("|")[1] if line.startswith("| ") else ""
    return [re.sub(r"\s*\(.*?\)\s*", "", part).strip() for part in re.split(r", (?=[A-Z])", first)]


def test_there_are_so_many() -> None:
    assert len(set(SEEDS)) == 53


@pytest.mark.parametrize("seed", SEEDS)
def test_a_seed_has_one_line_that_says_what_became_of_it(seed: str) -> None:
    [line] = [line for line in lines("papers.md") if seed in named(line)]
    *_, what, end = line.split("|")
    assert len(what.strip()) > 10
    assert not end


def test_strategies_that_papers_are_said_to_be_are_in_the_catalogue() -> None:
    rows = [line.split("|")[2] for line in lines("papers.md") if line.startswith("| ") and line.count("|") == 4]
    mentioned = {name for cell in rows for name in re.findall(r"`([a-z0-9_]+)`", cell)}
    assert len(mentioned) >= 20
    assert mentioned <= {*VISUAL.names(), *KV.names()}


def test_papers_that_strategies_cite_are_on_the_page() -> None:
    cited = {number for entry in entries() for number in re.findall(r"\d{4}\.\d{5}", entry["paper"])}
    assert len(cited) > 25
    assert cited <= set(re.findall(r"\d{4}\.\d{5}", "\n".join(lines("papers.md"))))


@pytest.mark.parametrize(("name", "part"), [(n, "visual") for n in VISUAL.names()] + [(n, "kv") for n in KV.names()])
def test_a_strategy_has_its_place_among_the_others(name: str, part: str) -> None:
    """Once among what decides, in the column of its part, and once in its part's catalogue."""
    page = lines("strategies.md")
    start, end = page.index("## By what decides"), page.index("## For images and videos")
    column = 3 if part == "visual" else 4
    places = [line for line in page[start:end] if line.startswith("|") and f"`{name}`" in line.split("|")[column]]
    assert len(places) == (0 if name in BASELINES else 1)
    opening = page.index("<!-- catalogue -->" if part == "visual" else "<!-- kv_catalogue -->")
    closing = page.index("<!-- /catalogue -->" if part == "visual" else "<!-- /kv_catalogue -->")
    assert sum(line.startswith(f"| `{name}` |") for line in page[opening:closing]) == 1
