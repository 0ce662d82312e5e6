"""Interleaved rounds: in each, every arm answers the same load, and the order changes from round to round."""

from __future__ import annotations

import asyncio
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import httpx

from vllm_prune.bench.watch import Peaks, Watch

from ..machine import quiet_seconds
from ..servers import Server
from .arms import Arm
from .client import Answer, ask
from .fleet import Fleet
from .meters import Spent, spent
from .workloads import Chat, Workload

CACHES = ("reset_prefix_cache", "reset_encoder_cache")
RESET_TRIES = 20


@dataclass(frozen=True)
class Load:
    """One measurement's load.

    Attributes:
        workload: what is asked.
        concurrency: requests in flight.
        requests: in each round.
        cell: pixels per side of a visual token.
        quiet: seconds of pause before each measurement.
        warm: requests of the round that warms up, all by default.
        prepared: every round sends the same media, and vLLM's caches of keys and of encoder outputs are emptied before
            it: the processor's output is cached, so what is measured is the engine. Needs VLLM_SERVER_DEV_MODE.
            Otherwise every arm sends, in every round, media and text that its server has not seen.
    """

    workload: Workload
    concurrency: int
    requests: int
    cell: int
    prepared: bool = False
    quiet: float = field(default_factory=quiet_seconds)
    warm: int | None = None


@dataclass
class Round:
    """What one arm did in one round; times in seconds."""

    seconds: float
    answers: list[Answer]
    peaks: Peaks
    spent: Spent

    @property
    def requests_per_second(self) -> float:
        """Throughput."""
        return len(self.answers) / self.seconds

    @property
    def ttft(self) -> list[float]:
        """To each request's first token."""
        return [answer.ttft for answer in self.answers]

    @property
    def gaps(self) -> list[float]:
        """Between tokens, of all requests."""
        return [gap for answer in self.answers for gap in answer.gaps]

    def usage(self, *path: str) -> float | None:
        """Mean of a count in the usage over the requests that have it, None where none has."""
        counts = [_at(answer.usage, path) for answer in self.answers]
        known = [count for count in counts if count is not None]
        return sum(known) / len(known) if known else None


def _at(usage: Any, path: Sequence[str]) -> float | None:
    for key in path:
        usage = usage.get(key) if isinstance(usage, dict) else None
    return None if usage is None else float(usage)


@dataclass
class Clock:
    """Time that a measurement may take; no limit by default."""

    seconds: float = float("inf")
    started: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.seconds - (time.monotonic() - self.started)


@dataclass
class Measured:
    """Rounds of a load by arm.

    Attributes:
        load: what was sent.
        first: the round that warmed up; it counts in no median.
        rounds: whole rounds only, equally many of each arm.
        wanted: rounds that were to be measured.
        errors: why an arm was left out from then on.
    """

    load: Load
    wanted: int
    first: dict[str, Round] = field(default_factory=dict)
    rounds: dict[str, list[Round]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    def of(self, arms: Sequence[Arm]) -> Measured:
        """The same with the rounds of these arms only."""
        rounds = {arm.name: list(self.rounds[arm.name]) for arm in arms if arm.name in self.rounds}
        return replace(self, rounds=rounds)


def interleaved(arms: Sequence[Arm], number: int) -> list[Arm]:
    """The arms in the order of a round: a Williams design.

    Over as many rounds as there are arms, or twice as many for an odd number, each arm has every place equally often,
    and follows every other one equally often: what a server leaves behind in the machine's caches weighs on all alike.
    """
    count = len(arms)
    zigzag = [(place + 1) // 2 if place % 2 else -(place // 2) for place in range(count)]
    order = [arms[(place + number) % count] for place in zigzag]
    return order[::-1] if count % 2 and number % 2 else order


def measure(
    fleet: Fleet, arms: Sequence[Arm], load: Load, rounds: int, clock: Clock, seed: int = 0, least: int = 1,
    tell: Callable[[str], None] = lambda text: None, keep: Callable[[Measured], None] = lambda measured: None,
) -> Measured:  # fmt: skip
    """Warm up, then measure rounds until there are enough or the time is up; a round that does not fit is left out.

    An arm that fails is left out from then on, and the others go on.

    Args:
        fleet: running servers.
        arms: to compare.
        load: see there.
        rounds: to measure.
        clock: ends the measurement early.
        least: rounds that are measured even so.
        seed: of the media; loads of the same servers need seeds of their own unless they are prepared.
        tell: called with what runs now.
        keep: called after each whole round with what is measured so far.
    """
    source = load.workload.chats(load.cell, seed)
    sets = _sets(arms, load, source)
    result, alive, longest = Measured(load, rounds), list(arms), 0.0
    for number in range(rounds + 1):
        if number and not load.prepared:
            sets = _sets(arms, load, source)
        started, done = time.monotonic(), {}
        for arm in interleaved(alive, number):
            chats = sets[(_before(arm, arms) + number) % len(sets)]
            turn = f"round {number} of {rounds}" if number else "warming up"
            tell(f"{load.workload.name} x {load.concurrency}, {turn}: {arm.name}")
            try:
                done[arm.name] = asyncio.run(one_round(fleet, arm, chats if number else chats[: load.warm], load))
            except Exception:
                result.errors[arm.name] = traceback.format_exc(limit=-4)
        alive = [arm for arm in alive if arm.name not in result.errors]
        if number:
            longest = max(longest, time.monotonic() - started)
            for arm in alive:
                result.rounds.setdefault(arm.name, []).append(done[arm.name])
            keep(result.of(alive))
        else:
            result.first = done
        if not alive or (number >= least and clock.left < longest):
            break
    return result.of(alive)


def _before(arm: Arm, arms: Sequence[Arm]) -> int:
    """Arms of the same server in front of one."""
    return [other.name for other in arms if other.server == arm.server].index(arm.name)


def _sets(arms: Sequence[Arm], load: Load, source: Iterator[Chat]) -> list[list[Chat]]:
    """Requests of a round: as many sets as the most arms that one server has, or one that all of them send."""
    most = 1 if load.prepared else max(Counter(arm.server for arm in arms).values())
    return [list(islice(source, load.requests)) for _ in range(most)]


async def one_round(fleet: Fleet, arm: Arm, chats: Sequence[Chat], load: Load) -> Round:
    """Send a round's requests, at most `load.concurrency` of them at a time."""
    server, model = fleet[arm.server], fleet.models[arm.server]
    await asyncio.sleep(load.quiet)
    gate = asyncio.Semaphore(load.concurrency)
    limits = httpx.Limits(max_connections=load.concurrency + 1)
    async with httpx.AsyncClient(timeout=600, limits=limits, trust_env=False) as client:
        if load.prepared:
            await asyncio.to_thread(empty_caches, server)

        async def guarded(chat: Chat) -> Answer:
            async with gate:
                return await ask(client, server.url, model, chat, load.workload.tokens, arm.pruning)

        before = await asyncio.to_thread(spent, server)
        async with Watch(server.url, {}) as watch:
            started = time.perf_counter()
            answers = await asyncio.gather(*(guarded(chat) for chat in chats))
            seconds = time.perf_counter() - started
        after = await asyncio.to_thread(spent, server)
    return Round(seconds, answers, watch.peaks, after - before)


def empty_caches(server: Server) -> None:
    """Empty the caches of keys and of encoder outputs of an idle server in development mode.

    Raises:
        RuntimeError: the server has no such route, or blocks stay in use.
    """
    for cache in CACHES:
        for _ in range(RESET_TRIES):
            reply = httpx.post(f"{server.url}/{cache}", timeout=30, trust_env=False)
            if reply.status_code != 200:
                raise RuntimeError(f"{cache} answered {reply.status_code}; is VLLM_SERVER_DEV_MODE=1 set?")
            # The reset fails while blocks of the last requests are still held.
            if not reply.content or reply.json().get("success", True):
                break
            time.sleep(0.1)
        else:
            raise RuntimeError(f"{cache}: blocks were still held after {RESET_TRIES} tries")
