"""Run all arms over all samples; finished cells are kept on disk and reused when their inputs are identical."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from .arms import UNPRUNED, Arm
from .client import Answer, Client, Refused, SweepError
from .samples import Sample


@dataclass(frozen=True)
class Cell:
    """One arm over all samples.

    Attributes:
        arm: the setting of this run.
        answers: in the order of the samples; empty where the server refused the arm.
        refusal: why, where it did.
        reused: whether the answers come from an earlier run.
    """

    arm: Arm
    answers: tuple[Answer, ...]
    refusal: str = ""
    reused: bool = False


def run(
    client: Client, model: str, samples: Sequence[Sample], arms: Sequence[Arm], store: Path | None = None
) -> list[Cell]:
    """Ask all samples under the unpruned arm and every other arm, one arm after the other.

    Args:
        client: the server.
        model: name to send.
        samples: the requests to send.
        arms: beside the unpruned one, which always comes first.
        store: folder of finished cells, None to keep none.

    Raises:
        SweepError: the server fails, or refuses an unpruned request.
    """
    arms = [UNPRUNED, *(arm for arm in arms if arm != UNPRUNED)]
    inputs = inputs_digest(model, samples)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    cells = []
    with Progress(*columns) as progress:
        task = progress.add_task("", total=len(arms) * len(samples))
        for place, arm in enumerate(arms):
            progress.update(task, description=arm.name)
            cell = _stored(store, inputs, arm, samples) or _ask(client, model, arm, samples, progress, task)
            if cell.refusal and arm is UNPRUNED:
                raise SweepError(f"the server refuses a request without a budget: {cell.refusal}")
            if store is not None and not cell.reused and not cell.refusal:
                _keep(store, inputs, cell)
            progress.update(task, completed=(place + 1) * len(samples))
            cells.append(cell)
    return cells


def _ask(client: Client, model: str, arm: Arm, samples: Sequence[Sample], progress: Progress, task: TaskID) -> Cell:
    try:
        answers = asyncio.run(client.ask(model, arm, samples, lambda: progress.advance(task)))
    except Refused as error:
        return Cell(arm, (), str(error))
    return Cell(arm, tuple(answers))


def inputs_digest(model: str, samples: Sequence[Sample]) -> str:
    """Hash of the model's name and of all samples in their order."""
    text = json.dumps([model, [sample.digest() for sample in samples]])
    return hashlib.sha256(text.encode()).hexdigest()


def _path(store: Path, inputs: str, arm: Arm) -> Path:
    return store / f"{hashlib.sha256(f'{inputs} {arm.field}'.encode()).hexdigest()[:24]}.json"


def _stored(store: Path | None, inputs: str, arm: Arm, samples: Sequence[Sample]) -> Cell | None:
    if store is None or not (path := _path(store, inputs, arm)).is_file():
        return None
    try:
        raw = json.loads(path.read_text())
        answers = tuple(Answer(**answer) for answer in raw["answers"])
    except (ValueError, KeyError, TypeError):
        # A run that was cut off while writing; the cell is run again.
        return None
    if [answer.id for answer in answers] != [sample.id for sample in samples]:
        return None
    return Cell(arm, answers, reused=True)


def _keep(store: Path, inputs: str, cell: Cell) -> None:
    store.mkdir(parents=True, exist_ok=True)
    path = _path(store, inputs, cell.arm)
    text = json.dumps({"arm": cell.arm.name, "answers": [answer.as_dict() for answer in cell.answers]}, indent=1)
    # Written aside first, so that a file with the final name is always whole.
    aside = path.with_suffix(".part")
    aside.write_text(text + "\n")
    aside.replace(path)
