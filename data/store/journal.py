"""The journal: an investigation's decisions, predictions, observations and costs, in an order that cannot be rewritten.

An investigation has a short id. Its hypotheses, experiments, predictions and observations are rows that are
only ever added; predictions are chained (journal_values.py). The database itself refuses an observation of an
experiment that has no earlier prediction, a second one, and any change to either. The ledger holds the costs,
keyed by a hash of the experiment or call, so that nothing is charged twice; decisions are kept by step, so that an
interrupted investigation goes on with the decisions it had taken. Each method is one transaction.
"""

import hashlib
import json
import sqlite3
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from sqlite_utils import Database

from ...subject.errors import NeuronautError
from . import journal_values, seals
from .database import Row, transaction, translate_errors
from .journal_values import Charge, End, Experiment, InvestigationRecord, Json, Observation, Prediction, as_json
from .writing import now


class Journal:
    """The investigations of one database."""

    def __init__(self, path: str, db: Database) -> None:
        self._path, self._db = path, db

    def transaction(self) -> AbstractContextManager[sqlite3.Connection]:
        """A block whose writes are all stored, or none."""
        return transaction(self._db, self._path)

    # The investigation

    def begin(self, record: InvestigationRecord) -> bool:
        """Write an investigation down; False where it is there already."""
        values = [
            record.id,
            record.kind,
            record.target,
            record.policy,
            as_json(record.settings),
            as_json(record.provenance),
            record.parent,
            now(),
        ]
        with self.transaction() as connection:
            cursor = connection.execute(
                "INSERT INTO investigations (id, kind, target, policy, settings, provenance, parent, status, created)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, 'running', ?) ON CONFLICT DO NOTHING",
                values,
            )
        return cursor.rowcount == 1

    def finish(self, id: str, status: End, *, reason: str, explanation: int | None = None) -> None:
        """Write down how an investigation ended. A finished one stays as it is."""
        with self.transaction() as connection:
            connection.execute(
                "UPDATE investigations SET status = ?, reason = ?, explanation_id = ?, ended = ?"
                " WHERE id = ? AND ended IS NULL",
                [status, reason, explanation, now(), id],
            )
            seals.seal(connection, id)

    def row(self, id: str) -> Row:
        """The investigation of an id, or of the beginning of one; NeuronautError where there is not just one."""
        return _parse_investigation(self._query("SELECT * FROM investigations WHERE id = ?", self.full_id(id))[0])

    def full_id(self, id: str) -> str:
        """The id of which this is the beginning, or itself; NeuronautError where there is not just one."""
        rows = self._query(
            "SELECT id FROM investigations WHERE id = ?1 OR (?1 <> '' AND substr(id, 1, length(?1)) = ?1) ORDER BY id",
            id,
        )
        matches = [row["id"] for row in rows if row["id"] == id] or [row["id"] for row in rows]
        if len(matches) != 1:
            count = "no investigation" if not matches else f"{len(matches)} investigations beginning with"
            raise NeuronautError(f"{self._path} has {count} {id or repr(id)}; see: neuronaut sessions list")
        return matches[0]

    def rows(self, *, limit: int | None = None) -> list[Row]:
        """All investigations, the latest first."""
        rows = self._query(
            "SELECT * FROM investigations ORDER BY created DESC, id LIMIT ?", -1 if limit is None else limit
        )
        return [_parse_investigation(row) for row in rows]

    def search(
        self,
        words: str = "",
        *,
        status: str | None = None,
        question: str | None = None,
        target: str | None = None,
        limit: int = 100,
        offset: int = 0,
    ) -> list[Row]:
        """Investigations, the latest first, of which all `words` are in target, reason, answer or hypotheses.

        `question` is what stayed open, `target` the beginning of a target. Rows have the columns of `rows` without
        settings and provenance, and `question`, `text` (of the answer), and numbers of `experiments` that went well and
        `rounds`.
        """
        conditions, values = ["1"], list[object]()
        for word in words.split():
            values.append(word)
            conditions.append(_HAS_WORD.format(len(values)))
        for column, wanted in (("status", status), ("question", question)):
            if wanted:
                values.append(wanted)
                conditions.append(f"{column} = ?{len(values)}")
        if target:
            values.append(target)
            conditions.append(f"substr(target, 1, length(?{len(values)})) = ?{len(values)}")
        sql = f"{_SESSIONS} SELECT * FROM sessions WHERE {' AND '.join(conditions)} LIMIT {limit:d} OFFSET {offset:d}"
        return self._query(sql, *values)

    def count(self, target: str) -> int:
        """How many investigations a target had."""
        return self._query("SELECT count(*) AS n FROM investigations WHERE target = ?", target)[0]["n"]

    def ends(self) -> list[Row]:
        """How investigations ended, and with which question open: `status`, `question` and `count`, most first."""
        return self._query(
            f"{_SESSIONS} SELECT status, question, count(*) AS count FROM sessions GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2"
        )

    # Events

    def event(self, id: str, kind: str, payload: Json, *, key: str) -> Row | None:
        """Append an event to an investigation's transcript; None where one of this key is there already."""
        with self.transaction() as connection:
            next_seq = connection.execute("SELECT coalesce(max(seq), 0) + 1 FROM events WHERE investigation = ?", [id])
            row = {"seq": next_seq.fetchone()[0], "time": now(), "kind": kind, **payload}
            cursor = connection.execute(
                "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (investigation, key) DO NOTHING",
                [id, row["seq"], row["time"], kind, key, as_json(payload)],
            )
        return row if cursor.rowcount else None

    def events(self, id: str, *, kind: str | None = None, after: int = 0) -> list[Row]:
        """The events of the transcript in order, all or those of one kind, from after number `after`."""
        rows = self._query(
            "SELECT * FROM events WHERE investigation = ? AND seq > ? AND kind = coalesce(?, kind) ORDER BY seq",
            id,
            after,
            kind,
        )
        return [
            {"seq": row["seq"], "time": row["time"], "kind": row["kind"], **_decode(row, "payload", "events")}
            for row in rows
        ]

    def event_of(self, id: str, key: str) -> Row | None:
        """The payload of the event of a key; None where there is no such event yet."""
        rows = self._query("SELECT seq, payload FROM events WHERE investigation = ? AND key = ?", id, key)
        return _decode(rows[0], "payload", "events") if rows else None

    # Decisions

    def decide(self, id: str, step: int, role: str, decision: Json) -> None:
        """Keep the decision of a step; the first one stands."""
        with self.transaction() as connection:
            connection.execute(
                "INSERT INTO decisions VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                [id, step, role, as_json(decision), now()],
            )

    def decision(self, id: str, step: int) -> Row | None:
        """The decision of a step, with its role; None where there is none."""
        rows = self._query("SELECT * FROM decisions WHERE investigation = ? AND step = ?", id, step)
        return {"role": rows[0]["role"], **_decode(rows[0], "decision", "decisions")} if rows else None

    def decisions(self, id: str) -> list[Row]:
        """All decisions in order, each with its step and role: the transcript that a replay follows."""
        rows = self._query("SELECT * FROM decisions WHERE investigation = ? ORDER BY step", id)
        return [{"step": row["step"], "role": row["role"], **_decode(row, "decision", "decisions")} for row in rows]

    # Hypotheses

    def add_hypotheses(self, id: str, step: int, hypotheses: Sequence[Json], *, origin: str) -> list[str]:
        """Add hypotheses of a step, and return their names; those of a step are added once."""
        with self.transaction() as connection:
            rows = connection.execute(
                "SELECT name FROM hypotheses WHERE investigation = ? AND step = ? ORDER BY id", [id, step]
            ).fetchall()
            if rows:
                return [row["name"] for row in rows]
            count = connection.execute("SELECT count(*) FROM hypotheses WHERE investigation = ?", [id]).fetchone()[0]
            names = [f"H{count + number}" for number in range(1, len(hypotheses) + 1)]
            connection.executemany(
                "INSERT INTO hypotheses (investigation, name, step, origin, body, created) VALUES (?, ?, ?, ?, ?, ?)",
                [(id, name, step, origin, as_json(body), now()) for name, body in zip(names, hypotheses, strict=True)],
            )
        return names

    def hypotheses(self, id: str, *, after: int = 0) -> list[Row]:
        """The hypotheses in order, without the first `after`: `name`, `step`, `origin`, `created` and `body`."""
        rows = self._query("SELECT * FROM hypotheses WHERE investigation = ? ORDER BY id LIMIT -1 OFFSET ?", id, after)
        return [{**row, "body": _decode(row, "body", "hypotheses")} for row in rows]

    # Experiments

    def preregister(self, id: str, experiments: Iterable[Experiment]) -> None:
        """Write experiments down with their predictions, before they are run; one that is known by name stays."""
        with self.transaction() as connection:
            for experiment in experiments:
                self._preregister(connection, id, experiment)

    def experiments(self, id: str, *, known: Sequence[Experiment] = ()) -> list[Experiment]:
        """All planned experiments in order; `known` are the first of them, which need not be read again."""
        predictions: dict[str, list[Prediction]] = {}
        last_seq = sum(len(experiment.predictions) for experiment in known)
        sql = "SELECT * FROM predictions WHERE investigation = ? AND seq > ? ORDER BY seq"
        for row in self._query(sql, id, last_seq):
            expected = tuple(_decode(row, "expected", "predictions"))
            predictions.setdefault(row["experiment"], []).append(Prediction(row["hypothesis"], expected))
        sql = "SELECT * FROM experiments WHERE investigation = ? ORDER BY id LIMIT -1 OFFSET ?"
        return [
            *known,
            *(
                Experiment(
                    name=row["name"],
                    tool=row["tool"],
                    args=_decode(row, "args", "experiments"),
                    purpose=row["purpose"],
                    survey=bool(row["survey"]),
                    role=row["role"],
                    round=row["round"],
                    key=row["key"],
                    design=_decode(row, "design", "experiments"),
                    base=tuple(_decode(row, "base", "experiments")),
                    reference=row["reference"],
                    predictions=tuple(predictions.get(row["name"], ())),
                )
                for row in self._query(sql, id, len(known))
            ),
        ]

    def observe(self, id: str, experiment: str, observation: Observation, *, charge: Charge) -> None:
        """Write down the observation of an experiment, and charge it.

        The database refuses it where nothing was predicted before, or something observed.
        """
        key = self._query("SELECT key FROM experiments WHERE investigation = ? AND name = ?", id, experiment)[0]["key"]
        with self.transaction() as connection:
            self._charge(connection, id, key, "experiment", charge)
            connection.execute(
                "INSERT INTO observations VALUES (?, ?, ?, ?, ?, ?, ?)",
                [
                    id,
                    experiment,
                    observation.status,
                    _pack(observation.result),
                    observation.reason,
                    as_json(observation.cost),
                    time.time_ns(),
                ],
            )

    def observations(self, id: str, *, known: Mapping[str, Observation] | None = None) -> dict[str, Observation]:
        """The observations in order, by the experiment's name; `known` are the first of them."""
        known = known or {}
        sql = "SELECT * FROM observations WHERE investigation = ? ORDER BY rowid LIMIT -1 OFFSET ?"
        read = {
            row["experiment"]: Observation(
                row["status"],
                _decode(row, "result", "observations"),
                row["reason"],
                _decode(row, "cost", "observations"),
            )
            for row in self._query(sql, id, len(known))
        }
        return {**known, **read}

    def known_result(self, key: str) -> dict[str, Any] | None:
        """The result of an experiment of this key that went well, in whichever investigation; None where none did."""
        sql = """SELECT experiment, result FROM observations JOIN experiments
            ON experiments.investigation = observations.investigation AND name = experiment
            WHERE key = ? AND status = 'ok' LIMIT 1"""
        rows = self._query(sql, key)
        return _decode(rows[0], "result", "observations") if rows else None

    def broken_link(self, id: str) -> str | None:
        """The experiment and hypothesis at which the chain of predictions breaks; None where it holds."""
        rows = self._query("SELECT * FROM predictions WHERE investigation = ? ORDER BY seq", id)
        return journal_values.find_broken_link(id, rows)

    # The holdout

    def peek(self, id: str, purpose: str) -> None:
        """Count a reading of the holdout, before it is read; the same purpose is counted once."""
        with self.transaction() as connection:
            connection.execute("INSERT INTO peeks VALUES (?, ?, ?) ON CONFLICT DO NOTHING", [id, purpose, now()])

    def peeks(self, id: str) -> list[str]:
        """The purposes for which the holdout was read."""
        return [row["purpose"] for row in self._query("SELECT purpose FROM peeks WHERE investigation = ?", id)]

    # The ledger

    def charge(self, id: str, key: str, kind: str, charge: Charge) -> None:
        """Charge something once: a key that is charged already stays as it is."""
        with self.transaction() as connection:
            self._charge(connection, id, key, kind, charge)
            # The last minutes are charged when all else is sealed.
            if connection.execute("SELECT ended FROM investigations WHERE id = ?", [id]).fetchone()["ended"]:
                seals.seal(connection, id)

    def spent(self, id: str) -> Charge:
        """All that an investigation has used, in every run of it."""
        columns = ", ".join(f"coalesce(sum({name}), 0) AS {name}" for name in Charge._fields)
        return Charge(**self._query(f"SELECT {columns} FROM ledger WHERE investigation = ?", id)[0])

    # Forks

    def fork(self, id: str, new: InvestigationRecord, *, step: int) -> None:
        """Copy the decisions before `step` under a new id.

        Hypotheses and experiments are made again from them, each at its time: a hypothesis that stood there from
        the beginning would predict the observations that it was made from.
        """
        if not self.begin(new):
            raise NeuronautError(f"{new.id} is there already; go on with: neuronaut investigate --resume {new.id}")
        with self.transaction() as connection:
            connection.execute(
                "INSERT INTO decisions (investigation, step, role, decision, created)"
                " SELECT ?3, step, role, decision, created FROM decisions"
                " WHERE investigation = ?1 AND step < ?2 ORDER BY step",
                [id, step, new.id],
            )
            seals.seal(connection, new.id)

    # What a replay checks

    def seal(self, id: str) -> None:
        """Seal what an investigation that is left before its end has written so far."""
        with self.transaction() as connection:
            seals.seal(connection, id)

    def is_sealed(self, id: str) -> bool:
        """Whether an investigation has a seal."""
        return seals.find_seal(self._db.conn, id)[0] is not None

    def unreadable(self, id: str) -> list[str]:
        """The cells of an investigation that cannot be read, by table, row and column, with the reason."""
        return seals.find_unreadable(self._db.conn, id)

    def edits(self, id: str) -> tuple[list[seals.Edit], bool] | None:
        """What differs from the seal, and whether that was made at the end; None where there is none."""
        sealed, ended = seals.find_seal(self._db.conn, id)
        return None if sealed is None else (seals.find_edits(sealed, seals.read_cells(self._db.conn, id)), ended)

    def stored_result(self, id: str) -> Row | None:
        """The explanation that an investigation stored: text, rule and its scores; None where it stored none."""
        sql = """SELECT explanations.id, text, explanations.rule FROM explanations
            JOIN investigations ON explanation_id = explanations.id WHERE investigations.id = ?"""
        for row in self._query(sql, id):
            scores = self._query("SELECT * FROM scores WHERE explanation_id = ?", row["id"])
            return {**row, "scores": scores}
        return None

    def ledger(self, id: str) -> dict[str, Row]:
        """What was charged, by key."""
        return {row["key"]: row for row in self._query("SELECT * FROM ledger WHERE investigation = ?", id)}

    def times(self, id: str) -> dict[str, list[tuple[str, Any]]]:
        """When each row of a table was written, in the order of writing, with the row's name."""
        tables = {
            "events": "SELECT key, time FROM events WHERE investigation = ? ORDER BY seq",
            "decisions": "SELECT step, created FROM decisions WHERE investigation = ? ORDER BY step",
            "hypotheses": "SELECT name, created FROM hypotheses WHERE investigation = ? ORDER BY id",
            "experiments": "SELECT name, created FROM experiments WHERE investigation = ? ORDER BY id",
            "predictions": "SELECT experiment, created FROM predictions WHERE investigation = ? ORDER BY seq",
            "observations": "SELECT experiment, created FROM observations WHERE investigation = ? ORDER BY rowid",
            "peeks": "SELECT purpose, created FROM peeks WHERE investigation = ? ORDER BY rowid",
        }
        return {
            table: [(str(name), time) for name, time in (row.values() for row in self._query(sql, id))]
            for table, sql in tables.items()
        }

    # Parts of transactions

    def _preregister(self, connection: sqlite3.Connection, id: str, experiment: Experiment) -> None:
        cursor = connection.execute(
            "INSERT INTO experiments (investigation, name, tool, args, purpose, survey, role, round, key, design, base,"
            " reference, created) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            [
                id,
                experiment.name,
                experiment.tool,
                as_json(experiment.args),
                experiment.purpose,
                experiment.survey,
                experiment.role,
                experiment.round,
                experiment.key,
                _pack(experiment.design),
                as_json(experiment.base),
                experiment.reference,
                now(),
            ],
        )
        if cursor.rowcount:
            journal_values.extend_chain(connection, id, experiment)

    def _charge(self, connection: sqlite3.Connection, id: str, key: str, kind: str, charge: Charge) -> None:
        connection.execute(
            f"INSERT INTO ledger (investigation, key, kind, {', '.join(Charge._fields)}, created)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            [id, key, kind, *charge, now()],
        )

    def _query(self, sql: str, *values: object) -> list[Row]:
        with translate_errors(self._path):
            return [dict(row) for row in self._db.conn.execute(sql, values)]


def investigation_id(kind: str, target: str, policy: str, settings: Json) -> str:
    """The id of an investigation: the same one again has the same id."""
    content = as_json({"kind": kind, "target": target, "policy": policy, "settings": settings})
    return hashlib.sha256(content.encode()).hexdigest()[:10]


_SESSIONS = """WITH sessions AS (
    SELECT id, kind, target, policy, status, reason, created, ended, parent, explanation_id,
        (SELECT payload ->> 'question' FROM events WHERE investigation = this.id AND key = 'concluded') AS question,
        (SELECT payload ->> 'text' FROM events WHERE investigation = this.id AND key = 'frozen') AS text,
        (SELECT count(*) FROM observations AS seen JOIN experiments ON experiments.investigation = seen.investigation
            AND name = experiment WHERE seen.investigation = this.id AND status = 'ok' AND NOT survey) AS experiments,
        (SELECT max(round) FROM experiments WHERE investigation = this.id) AS rounds
    FROM investigations AS this ORDER BY created DESC, id)"""
_HAS_WORD = """(instr(lower(id || ' ' || target || ' ' || policy), lower(?{0}))
    OR instr(lower(coalesce(reason, '')), lower(?{0})) OR instr(lower(coalesce(text, '')), lower(?{0}))
    OR EXISTS (SELECT 1 FROM hypotheses
        WHERE investigation = sessions.id AND instr(lower(body ->> 'text'), lower(?{0}))))"""


def _parse_investigation(row: Row) -> Row:
    return {**row, **{name: _decode(row, name, "investigations") for name in ("settings", "provenance")}}


def _pack(value: Json) -> bytes:
    return zlib.compress(as_json(value).encode("utf-8", "replace"))


def _decode(row: Row, column: str, table: str) -> Any:
    """The JSON of a cell, packed or not; NeuronautError names the cell where it is none."""
    value = row[column]
    try:
        return json.loads(zlib.decompress(value) if isinstance(value, bytes) else value)
    except (ValueError, TypeError, zlib.error, RecursionError) as error:
        names = (str(row[name]) for name in ("seq", "experiment", "name", "step", "id") if name in row)
        raise NeuronautError(
            f"{table} {next(names)} {column} cannot be decoded ({type(error).__name__}); neuronaut sessions replay "
            "names every such cell"
        ) from error
