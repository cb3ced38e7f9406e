"""Forking: another way from some step of an investigation on.

A fork copies the decisions before a step under a new id; run again, it takes these as decided, finds their experiments
measured, and goes on by itself.
"""

from ..data.store.journal import Journal, investigation_id
from ..data.store.journal_values import InvestigationRecord
from ..subject.errors import NeuronautError


def fork(journal: Journal, id: str, *, step: int, seed: int | None = None) -> InvestigationRecord:
    """Copies an investigation's decisions before `step`, to be run with `investigate(..., fork=...)`.

    The copy has its own `seed` where one is given.
    """
    row = journal.row(id)
    steps = [decision["step"] for decision in journal.decisions(row["id"])]
    if not 0 <= step <= len(steps):
        raise NeuronautError(f"{row['id']} has {len(steps)} decisions; fork it at step 0 to {len(steps)}, not {step}")
    settings = {**row["settings"], "fork": [row["id"], step]}
    if seed is not None:
        settings["seed"] = seed
    new = InvestigationRecord(
        id=investigation_id(row["kind"], row["target"], row["policy"], settings),
        kind=row["kind"],
        target=row["target"],
        policy=row["policy"],
        settings=settings,
        provenance=row["provenance"],
        parent=row["id"],
    )
    journal.fork(row["id"], new, step=step)
    return new
