"""Replaying: the verdict again from what is written down.

A replay asks nobody and runs nothing. What follows from other rows is judged again, round by round and by name
(checks.py); since verdicts are arithmetic, every odd must come out to the bit. All rows are held against the seal of
the session (data/store/seals.py). What only the model can tell, and what has no seal, is said; rerun.py asks the model.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ..data.store.journal import Journal
from ..subject.errors import NeuronautError
from .checks import CHECKS, Transcript, different_rounds
from .loop.judging import FORMULA

ROWS, NAME = 5, 24
"""Rows that a line names, and characters of each, where the same column of many was edited."""


class Replay(NamedTuple):
    """What a replay found."""

    id: str
    rounds: int
    """Rounds whose verdicts were made again."""
    different: tuple[int, ...]
    """Rounds in which anything came out otherwise."""
    answer: str
    """What the evidence says at the end."""
    leader: str | None
    formulas: tuple[str, ...]
    """By which arithmetic it was judged, where that was not this code's."""
    faults: tuple[str, ...]
    """What is not as it was written down or does not follow from the rest, by name, a line each."""
    unvouched: tuple[str, ...] = ()
    """What nothing here vouches for, a line each."""
    measured: tuple[str, ...] = ()
    """What only the model can tell, a line each."""
    readable: bool = True
    """Whether every cell can be read."""

    @property
    def same(self) -> bool:
        """Whether everything came out as it was written down."""
        return not self.faults


_WRONG = (ArithmeticError, AssertionError, AttributeError, LookupError, NeuronautError, TypeError, ValueError)
"""What arithmetic raises on rows that can be read and hold what no investigation writes."""


def replay(journal: Journal, id: str) -> Replay:
    """Judges a stored investigation again, and holds it against its seal. `id` may be the beginning of one."""
    id = journal.full_id(id)
    if unreadable := journal.unreadable(id):
        found = Replay(id, 0, (), "open", None, formulas=(), faults=tuple(unreadable))
        return found._replace(unvouched=("all else: it needs rows that can be read",), readable=False)
    faults, unvouched = _compare_seal(journal, id)
    if (broken := journal.broken_link(id)) is not None:
        faults = (*faults, f"the chain of predictions breaks at {broken}")
    found = Replay(id, 0, (), "open", None, formulas=(), faults=faults, unvouched=unvouched)
    try:
        said = Transcript.read(journal, id)
        outcome, different = said.outcome(), tuple(different_rounds(said))
    except _WRONG as error:
        return found._replace(faults=(*faults, _describe("the evidence", error)))
    rounds = said.of_kind("judged")
    others = tuple({str(event.get("formula")) for event in rounds} - {FORMULA})
    return found._replace(
        rounds=len(rounds),
        different=different,
        answer=outcome.answer,
        leader=outcome.leader,
        formulas=others,
        faults=(*faults, *_judge(journal, said, different, others)),
        measured=tuple(_measured(said)),
    )


def _judge(journal: Journal, said: Transcript, different: tuple[int, ...], others: tuple[str, ...]) -> Iterator[str]:
    if different:
        yield f"rounds {', '.join(map(str, different))} come out otherwise"
        yield from (f"it was judged by {name}, this Neuronaut judges by {FORMULA}" for name in others)
    for name, check in CHECKS.items():
        try:
            yield from check(said, journal)
        except _WRONG as error:
            yield _describe(name, error)


def _describe(what: str, error: BaseException) -> str:
    return f"{what} cannot be judged: {type(error).__name__}: {' '.join(str(error).split())[:160]}"


def _join(rows: Sequence[str]) -> str:
    """Names of rows, the first of many; keys of the ledger are long hashes."""
    names = [row if len(row) <= NAME else f"{row[:NAME]}…" for row in rows]
    return ", ".join(names[:ROWS]) + f" and {len(names) - ROWS} more" * (len(names) > ROWS)


def _measured(said: Transcript) -> Iterator[str]:
    """What stands in the rows because the model gave it, which no arithmetic gives again."""
    if said.observations:
        yield f"what {len(said.observations)} experiments measured, the baseline, holdout and controls"


def _compare_seal(journal: Journal, id: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What differs from the seal, and what no seal vouches for."""
    compared = journal.edits(id)
    if compared is None:
        return (), (
            "it has no seal (it is running, was killed, or is of a version before seals): purposes, surveys, the "
            "baseline, scores and controls are taken as they are stored",
        )
    edits, ended = compared
    alike: dict[tuple[str, str | None, str], list[str]] = {}
    for edit in edits:
        if ended or edit.what != "added":
            alike.setdefault((edit.table, edit.column, edit.what), []).append(edit.row)
    faults = tuple(
        f"{' '.join(filter(None, (table, _join(rows), column)))} was {what} after it was sealed"
        for (table, column, what), rows in alike.items()
    )
    since = sum(not ended and edit.what == "added" for edit in edits)
    return faults, (f"{since} rows were added since it was sealed, before its end",) if since else ()
