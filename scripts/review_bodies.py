#!/usr/bin/env python3
"""List the functions of vLLM that this project builds on and that nobody has read yet in the installed version.

Run it with the interpreter of the environment that has that vLLM. For each function it says where it is, and where this
project uses its name. Read each of them against the version that was reviewed before; then `--accept` enters their
hashes into the ledger, `vllm_prune/vllm_compat/reviewed.json`, and the commit says who has read them.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import json
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from vllm_prune.vllm_compat.bodies import LEDGER, Location, body_of, ledger, unreviewed
from vllm_prune.vllm_compat.signatures import SIGNATURES, UnknownSignature
from vllm_prune.vllm_compat.version import minor_of, vllm_version

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"vllm_prune": ROOT / "vllm_prune", "vllm_prune_server": ROOT / "server"}
TABLE = ROOT / "vllm_prune" / "vllm_compat" / "signatures"

ALSO = (
    # What media intake relies on without a call by name: constructors, what they keep, and how videos are measured.
    "vllm.multimodal.media.image:ImageMediaIO.__init__",
    "vllm.multimodal.media.video:VideoMediaIO.__init__",
    "vllm.multimodal.media.video:VideoMediaIO.load_bytes",
    "vllm.multimodal.media.audio:AudioMediaIO.__init__",
    "vllm.multimodal.media.audio:AudioMediaIO.load_bytes",
    "vllm.multimodal.media.connector:MediaConnector.__init__",
    "vllm.multimodal.media.connector:MediaConnector.fetch_image_async",
    "vllm.multimodal.media.connector:MediaConnector.fetch_video_async",
    "vllm.multimodal.media.connector:MediaConnector.fetch_audio_async",
    "vllm.multimodal.video_decoders.opencv:decode_opencv",
    "vllm.multimodal.video_decoders.opencv:OpenCVVideoBackendMixin.get_video_metadata",
    # What CUDA's worker does around ours.
    "vllm.v1.worker.gpu_worker:Worker.init_device",
    "vllm.v1.worker.gpu_worker:Worker.execute_model",
    # When plugins are loaded, and which of our front end's steps vLLM runs after them.
    "vllm.plugins:load_general_plugins",
    "vllm.plugins:load_endpoint_plugins",
)
"""Locations that no entry of the signature table and no class or import of ours leads to."""
ELSEWHERE = ("vllm.v1.worker.cpu_worker", "vllm.v1.worker.gpu_worker")
"""Bases that depend on the machine; what counts of them is in `ALSO`."""
SHIMS = "vllm.v1.worker.cpu."
"""Where vLLM keeps what it puts in the place of other functions on a CPU."""


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of the product, by dotted name."""
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            yield ".".join((package, *parts[: -1 if parts[-1] == "__init__" else None])), path


def from_table() -> Iterator[Location]:
    """What the entries of the signature table stand for."""
    for entry in SIGNATURES:
        if not entry.module.startswith("vllm") or not entry.expected:
            continue
        try:
            holder, target = entry.holder(), entry.load()
        except UnknownSignature as error:
            raise SystemExit(f"mend the signature table first: {error}") from None
        # Data has no body; in the place of what this process has replaced there is one by its name.
        attribute, owner = entry.home().name.rpartition(".")[2], Location.of(holder)
        module = getattr(holder, "__name__", "") if inspect.ismodule(holder) else ""
        replaced = Location(owner.module, f"{owner.name}.{attribute}") if owner else Location(module, attribute)
        yield Location.of(target) or replaced


def overridden() -> Iterator[Location]:
    """Methods of vLLM that a class of ours, or one that it is mixed with, overrides."""
    for name, _ in modules():
        for cls in vars(importlib.import_module(name)).values():
            if not inspect.isclass(cls) or cls.__module__ != name:
                continue
            kept = [base for base in cls.__mro__ if base.__module__.split(".")[0] == "vllm"]
            own = {n for base in cls.__mro__ if base.__module__.split(".")[0] in PACKAGES for n in vars(base)}
            for base in (base for base in kept if base.__module__ not in ELSEWHERE):
                for attribute in sorted(own & set(vars(base))):
                    # A wrapped method is found where it is defined, not where it hangs.
                    location = Location.of(vars(base)[attribute])
                    yield location or Location(base.__module__, f"{base.__qualname__}.{attribute}")


def imported() -> Iterator[Location]:
    """Functions of vLLM that a module of ours imports."""
    for _, path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm":
                if node.module in ELSEWHERE:
                    continue
                module = importlib.import_module(str(node.module))
                for alias in node.names:
                    target = getattr(module, alias.name, None)
                    location = Location.of(target) if inspect.isroutine(target) else None
                    if location is not None and not location.module.startswith(SHIMS):
                        yield location


def expected() -> list[Location]:
    """All locations of the installed vLLM whose bodies have to be in the ledger."""
    also = (Location.parse(text) for text in ALSO)
    found = {*from_table(), *overridden(), *imported(), *(location for location in also if body_of(location))}
    # Methods that a metaclass or a decorator makes have no body of their own.
    return sorted(location for location in found if body_of(location) is not None)


@cache
def _sources() -> list[tuple[Path, list[str]]]:
    return [(path, path.read_text(encoding="utf-8").splitlines()) for _, path in modules() if TABLE not in path.parents]


def uses(location: Location) -> list[str]:
    """Places of ours with the name of a function, or of its class for a constructor, as `file:line`."""
    owner, _, name = location.name.rpartition(".")
    word = re.compile(rf"\b{re.escape(owner if name.startswith('__') and owner else name)}\b")
    return [
        f"{path.relative_to(ROOT)}:{number}"
        for path, lines in _sources()
        for number, line in enumerate(lines, 1)
        if word.search(line)
    ]


def describe(location: Location) -> str:
    """What a person has to read, and why."""
    body = body_of(location)
    assert body is not None
    places = uses(location)
    more = f" and {len(places) - 4} more" if len(places) > 4 else ""
    return (
        f"{location}\n    read {body.path}:{body.line}\n    used in {', '.join(places[:4]) or '(a base class)'}{more}"
    )


def accept(locations: list[Location], minor: str) -> None:
    """Enter the installed bodies into the ledger, and take out what is no longer built on in this version."""
    entries = ledger()
    for location in locations:
        body = body_of(location)
        assert body is not None
        hashes = entries.setdefault(location, {}).setdefault(minor, [])
        if body.digest not in hashes:
            hashes.append(body.digest)
    for location in set(entries) - set(locations):
        entries[location].pop(minor, None)
    kept = {str(location): dict(sorted(hashes.items())) for location, hashes in sorted(entries.items()) if hashes}
    lines = ",\n".join(f"  {json.dumps(text)}: {json.dumps(hashes)}" for text, hashes in kept.items())
    LEDGER.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


def main() -> int:
    """List or accept; the status is 1 while a body has not been reviewed."""
    parser = argparse.ArgumentParser(description="Bodies of vLLM that nobody has read for this project.")
    parser.add_argument("--accept", action="store_true", help="you have read what was listed: enter the hashes")
    parser.add_argument("--locations", action="store_true", help="print what has to be in the ledger, and no more")
    options = parser.parse_args()
    minor, locations = minor_of(vllm_version()), expected()
    if options.locations:
        print("\n".join(map(str, locations)))
        return 0
    unknown = unreviewed(locations, minor)
    for location in unknown:
        print(describe(location))
    print(f"{len(locations)} bodies of vLLM {vllm_version()}, {len(unknown)} of them not reviewed", file=sys.stderr)
    if options.accept:
        accept(locations, minor)
        return 0
    return 1 if unknown else 0


if __name__ == "__main__":
    raise SystemExit(main())
