"""The load behind the dashboards' pictures: three phases of requests, with budgets that grow tighter."""

from __future__ import annotations

import base64
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "playground" / "public" / "examples"
CLIENTS = 6
ANSWER_TOKENS = 48
CONFIG = """
limits: {min_keep: 0.1}
media: {private: [localhost]}
"""
"""Of the server: a floor that clamps, and downloads from itself."""


@dataclass(frozen=True)
class Phase:
    """Requests of one kind.

    Attributes:
        name: what is asked for.
        seconds: how long.
        pruning: budgets, one of which is drawn for each request.
    """

    name: str
    seconds: int
    pruning: tuple[dict[str, Any] | str, ...]


OFF = {"visual": None, "kv": None}
PHASES = (
    Phase("no budget", 45, (OFF,)),
    Phase("half of the visual tokens", 45, ({"visual": {"keep": 0.5}}, {"visual": {"strategy": "stts", "keep": 0.5}})),
    Phase(
        "a quarter of them, and 40% of the cache",
        45,
        (
            {"visual": {"keep": 0.25}, "kv": {"keep": 0.4, "buffer": 16}},
            {"visual": {"strategy": "stts", "keep": 0.25}, "kv": {"strategy": "gui_kv", "keep": 0.4, "buffer": 16}},
        ),
    ),
)
REFUSED: dict[str, Any] = {"visual": {"strategy": "divprune", "keep": 1.5}}
CLAMPED: dict[str, Any] = {"visual": {"keep": 0.05}}
ODD_SHARE = 0.04
"""Of the requests that are refused, and of those that are clamped or name a host that is not allowed."""


def data_url(name: str) -> str:
    """A bundled example as a data URL."""
    kind = "video/mp4" if name.endswith(".mp4") else "image/png"
    return f"data:{kind};base64,{base64.b64encode((EXAMPLES / name).read_bytes()).decode()}"


def media_part(chance: random.Random, url: str) -> dict[str, Any]:
    """A picture, a downloaded picture or a video, under a name that no cache knows."""
    drawn = chance.random()
    uuid = f"{chance.getrandbits(96):x}"
    if drawn < ODD_SHARE:
        return {"type": "image_url", "image_url": {"url": "http://127.0.0.2/page.png"}}
    if drawn < 0.2:
        return {"type": "video_url", "video_url": {"url": data_url("clip.mp4")}, "uuid": uuid}
    if drawn < 0.4:
        here = url.replace("127.0.0.1", "localhost")
        return {"type": "image_url", "image_url": {"url": f"{here}/playground/examples/page.png"}, "uuid": uuid}
    return {"type": "image_url", "image_url": {"url": data_url("page.png")}, "uuid": uuid}


def body(chance: random.Random, url: str, model: str, phase: Phase) -> dict[str, Any]:
    """One request of a phase."""
    drawn = chance.random()
    pruning = REFUSED if drawn < ODD_SHARE else CLAMPED if drawn < 2 * ODD_SHARE else chance.choice(phase.pruning)
    content = [media_part(chance, url), {"type": "text", "text": "click the green star"}]
    return {
        "model": model, "messages": [{"role": "user", "content": content}], "temperature": 0, "pruning": pruning,
        "max_tokens": ANSWER_TOKENS, "ignore_eos": True,
    }  # fmt: skip


def drive(url: str, model: str) -> dict[str, int]:
    """Run all phases; how many answers had which status."""
    counts: Counter[str] = Counter()
    lock = threading.Lock()

    def client(seed: int) -> None:
        chance = random.Random(seed)
        with httpx.Client(base_url=url, timeout=120) as http:
            for phase in PHASES:
                end = starts[phase.name] + phase.seconds
                while time.monotonic() < end:
                    status = http.post("/v1/chat/completions", json=body(chance, url, model, phase)).status_code
                    with lock:
                        counts[str(status)] += 1

    starts, at = {}, time.monotonic()
    for phase in PHASES:
        starts[phase.name] = at
        at += phase.seconds
    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return dict(sorted(counts.items()))
