"""Tenants at work: whose key it is, and whether the tenant may have another request now."""

from __future__ import annotations

import hmac
import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack

from vllm_prune.config.tenants import Rate, Tenant, hash_key, named

from ..openai.errors import too_many, unauthorized

CONCURRENCY_RETRY_SECONDS = 1


class Bucket:
    """A token bucket that starts full.

    Args:
        rate: refill and size.
        clock: seconds.
    """

    def __init__(self, rate: Rate, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate, self.clock = rate, clock
        self.tokens, self.at = float(rate.burst), clock()

    def take(self) -> float:
        """Take a token; returns 0, or the seconds until there is one."""
        now = self.clock()
        self.tokens = min(self.rate.burst, self.tokens + (now - self.at) * self.rate.requests_per_second)
        self.at = now
        if self.tokens < 1:
            return (1 - self.tokens) / self.rate.requests_per_second
        self.tokens -= 1
        return 0.0


class Account:
    """What a tenant has in use. Its keys share one."""

    def __init__(self, tenant: Tenant) -> None:
        self.tenant, self.inflight = tenant, 0
        self.bucket = Bucket(tenant.rate) if tenant.rate else None

    def enter(self, exits: ExitStack) -> None:
        """Count one more request until `exits` closes.

        Raises:
            Refusal: 429, over the tenant's rate or concurrency.
        """
        cap = self.tenant.max_inflight_requests
        if cap is not None and self.inflight >= cap:
            message = f"{cap} requests of this API key are being answered, which is its limit; wait for one to end"
            raise too_many("tenant_concurrency", message, CONCURRENCY_RETRY_SECONDS)
        if self.bucket is not None and (wait := self.bucket.take()):
            per_second = self.bucket.rate.requests_per_second
            message = f"this API key may send {per_second:g} requests per second; retry in {wait:.1f} s"
            raise too_many("tenant_rate", message, math.ceil(wait))
        self.inflight += 1
        exits.callback(self._leave)

    def _leave(self) -> None:
        self.inflight -= 1


class Accounts:
    """All tenants of this server, by key hash.

    Args:
        tenants: the section of the configuration; without any, no key is needed.
    """

    def __init__(self, tenants: Mapping[str, Tenant]) -> None:
        full = named(tenants)
        by_name = {tenant.name: Account(tenant) for tenant in full.values()}
        self.by_hash = {key.encode(): by_name[tenant.name] for key, tenant in full.items()}

    def __bool__(self) -> bool:
        return bool(self.by_hash)

    def of(self, headers: Iterable[tuple[bytes, bytes]]) -> Account:
        """Account of the key in a request's `Authorization` header, or in `x-api-key`, which Anthropic's clients send.

        Raises:
            Refusal: 401.
        """
        headers = list(headers)
        values = [value for name, value in headers if name == b"authorization"]
        scheme, _, key = values[0].partition(b" ") if len(values) == 1 else (b"", b"", b"")
        if not values:
            keys = [value for name, value in headers if name == b"x-api-key"]
            scheme, key = b"bearer", keys[0] if len(keys) == 1 else b""
        if scheme.lower() != b"bearer" or not key:
            raise unauthorized("no API key; send it as `Authorization: Bearer KEY` or as `x-api-key: KEY`")
        key_hash = hash_key(key.strip().decode("latin-1")).encode()
        matching = None
        # Every hash is compared, so that the time taken says nothing about which one it was.
        for known, account in self.by_hash.items():
            if hmac.compare_digest(known, key_hash):
                matching = account
        if matching is None:
            raise unauthorized("incorrect API key")
        return matching
