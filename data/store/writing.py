"""Writes harvests, explanations, scores and prompts into the store, each call in one transaction.

Nothing is written twice: a harvest, an explanation and a score are each compared by a digest of their content,
so writing one again changes nothing. A window keeps the split it was first given. Of prompts, the text of every
one that was used is kept by hash, beside the user's own choices.
"""

import json
import math
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ...subject.address import Feature, SourceId, harvest_command
from ...subject.convention import BEFORE, Convention
from ...subject.errors import NeuronautError
from ..codec import ArrayDigest, content_digest, pack_activations, pack_ids, window_digest
from ..padding import PADDING
from ..records import SPLITS, ExampleList, Explanation, HarvestResult, Kind, Mined, Score, SourceResult
from .ranks import rank_new
from .shared_windows import write_shared_windows
from .top_tokens import write_top_tokens


def write_harvest(connection: sqlite3.Connection, result: HarvestResult, mined: Future[Mined] | None = None) -> None:
    """Write a harvest; of a source harvested before, statistics and examples are replaced.

    Of a new source, all but what is `mined` is written while that is still being measured.
    """
    windows = [row[row != PADDING] for row in result.windows]
    window_ids = _write_windows(connection, result, windows)
    _write_vocabulary(connection, result)
    connection.execute("DELETE FROM pool WHERE model = ?", [result.model])
    pool = ((result.model, int(row)) for row in np.unique(window_ids[result.pool]))
    connection.executemany("INSERT INTO pool (model, window_id) VALUES (?, ?)", pool)
    # Hashing takes as long as packing does, and Python's other threads go on meanwhile.
    with ThreadPoolExecutor(1, thread_name_prefix="digest") as beside:
        writers = [_SourceWriter(connection, result, source, window_ids, beside) for source in result.sources]
        more: Mined = {} if mined is None else mined.result()
        for writer in writers:
            writer.finish(more.get(writer.name, {}))


def _write_windows(
    connection: sqlite3.Connection, result: HarvestResult, windows: Sequence[NDArray[np.int32]]
) -> NDArray[np.int64]:
    digests = list(map(window_digest, windows))
    rows = (
        (result.model, digest, pack_ids(ids), SPLITS[split], document)
        for digest, ids, split, document in zip(digests, windows, result.splits, result.documents, strict=True)
    )
    connection.executemany(
        "INSERT INTO windows (model, hash, tokens, split, document) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", rows
    )
    sql = "SELECT id FROM windows WHERE hash = ? AND model = ?"
    return np.array([connection.execute(sql, (digest, result.model)).fetchone()[0] for digest in digests], np.int64)


def _write_vocabulary(connection: sqlite3.Connection, result: HarvestResult) -> None:
    sql = "INSERT INTO vocabularies VALUES (?, ?) ON CONFLICT (model) DO UPDATE SET tokens = excluded.tokens"
    connection.execute(sql, [result.model, json.dumps(result.vocabulary)])


class _SourceWriter:
    """Writes the harvest of one source: what is known of a new one at once, the rest in the end."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        result: HarvestResult,
        source: SourceResult,
        window_ids: NDArray[np.int64],
        hashing: ThreadPoolExecutor,
    ) -> None:
        """`hashing` is one thread, which does what it is given in turn."""
        self.name = source.source
        self._connection, self._result, self._source = connection, result, source
        self._window_ids, self._digest = window_ids, ArrayDigest()
        self._hashing, self._hashed = hashing, list[Future[None]]()
        self._id = _upsert_source(connection, result, source)
        previous = connection.execute("SELECT digest FROM harvests WHERE source_id = ?", [self._id]).fetchone()
        self._previous: str | None = previous and previous[0]
        statistics = (source.count, source.mean, source.peak, source.trough, source.histogram)
        self._hash(lambda: statistics)
        self._hash_lists(source.lists)
        if self._previous is None:
            self._replace()

    def finish(self, mined: Mapping[Kind, ExampleList]) -> None:
        """Write what is left to write, with the lists that were mined."""
        self._hash_lists(mined)
        digest = self._hashing.submit(self._hexdigest, [*self._source.lists, *mined])
        if self._previous is None or self._previous != digest.result():
            if self._previous is not None:
                self._replace()
            self._write_lists(mined)
            self._write_harvest(digest.result())
        _write_tokens(self._connection, self._source, self._id)

    def _hash_lists(self, lists: Mapping[Kind, ExampleList]) -> None:
        for examples in lists.values():
            self._hash(partial(_list_arrays, examples, self._window_ids))

    def _hash(self, arrays: Callable[[], Iterable[NDArray[np.generic]]]) -> None:
        self._hashed.append(self._hashing.submit(lambda: self._digest.add(arrays())))

    def _hexdigest(self, kinds: Sequence[Kind]) -> str:
        for own in self._hashed:
            own.result()
        return content_digest(self._result.corpus, self._result.tokens, kinds, self._digest.hexdigest())

    def _replace(self) -> None:
        """Write the statistics and the lists that came first, in place of those that there are."""
        _write_features(self._connection, self._source, self._id)
        sql = "DELETE FROM examples WHERE feature_id IN (SELECT id FROM features WHERE source_id = ?)"
        self._connection.execute(sql, [self._id])
        self._write_lists(self._source.lists)

    def _write_lists(self, lists: Mapping[Kind, ExampleList]) -> None:
        feature_ids = _feature_ids(self._connection, self._id)
        for kind, examples in lists.items():
            self._connection.executemany(
                "INSERT INTO examples (feature_id, kind, n, windows, activations, keys, weights)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                _example_rows(kind, examples, feature_ids, self._window_ids),
            )

    def _write_harvest(self, digest: str) -> None:
        own = self._result
        self._connection.execute(
            "INSERT OR REPLACE INTO harvests (source_id, digest, corpus, tokens, window, provenance, created)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            [self._id, digest, own.corpus, own.tokens, own.window, _json(own.provenance), now()],
        )
        write_shared_windows(self._connection, self._id)


def write_tokens(connection: sqlite3.Connection, sources: Sequence[SourceResult]) -> None:
    """Write the tokens that the features of stored sources raise."""
    for source in sources:
        (id,) = connection.execute("SELECT id FROM sources WHERE name = ?", [source.source]).fetchone()
        _write_tokens(connection, source, id)


def _write_tokens(connection: sqlite3.Connection, source: SourceResult, source_id: int) -> None:
    if source.top_tokens is not None:
        write_top_tokens(connection, _feature_ids(connection, source_id), source.top_tokens)


def _list_arrays(examples: ExampleList, window_ids: NDArray[np.int64]) -> tuple[NDArray[np.generic], ...]:
    return examples.features, window_ids[examples.windows], examples.activations, *(examples.attended or ())


def _upsert_source(connection: sqlite3.Connection, result: HarvestResult, source: SourceResult) -> int:
    name = SourceId.parse(source.source)
    check_same_source(connection, source.source, source.revision, result.revision, source.width)
    connection.execute(
        "INSERT INTO sources (name, model, site, dictionary, kind, width, signed, revision, model_revision, norms)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        [
            source.source,
            name.model,
            name.site,
            name.dictionary,
            source.kind,
            source.width,
            source.signed,
            source.revision,
            result.revision,
            None if source.norms is None else source.norms.astype("<f4").tobytes(),
        ],
    )
    return connection.execute("SELECT id FROM sources WHERE name = ?", [source.source]).fetchone()[0]


def check_same_source(
    connection: sqlite3.Connection, name: str, revision: str, model_revision: str, width: int
) -> None:
    """Refuse to mix two models or dictionaries that go by one name, and a new name that is not safe as one."""
    sql = "SELECT revision, model_revision, width FROM sources WHERE name = ?"
    own = connection.execute(sql, [name]).fetchone()
    if own is None:
        _check_new_source(connection, SourceId.parse(name), model_revision)
    elif tuple(own) != (revision, model_revision, width):
        raise NeuronautError(
            f"{name} here is of other weights (dictionary {own[0] or '-'}, model {own[1] or '-'}, width {own[2]})"
            f" than the new one ({revision or '-'}, {model_revision or '-'}, width {width});"
            " give it another --name (a model: --model-name), or another database"
        )


def _check_new_source(connection: sqlite3.Connection, source: SourceId, model_revision: str) -> None:
    source.check()
    sql = "SELECT DISTINCT model_revision FROM sources WHERE model = ?"
    known = [revision for (revision,) in connection.execute(sql, [source.model])]
    if known and model_revision not in known:
        raise NeuronautError(
            f"{source.model} here is of other weights (model {' and '.join(known)}) than the one that {source} is of"
            f" ({model_revision}): another folder, revision or dtype; harvest it as --model-name NAME, or into another"
            " database"
        )


def check_same_convention(connection: sqlite3.Connection, name: str, convention: Convention) -> None:
    """Refuse to mix evidence of a source that was read from text in two ways.

    The sources of a model share its pool of windows, which hold no BOS: of others, special tokens alone must agree.
    """
    sql = "SELECT name, provenance FROM main.harvests JOIN main.sources ON sources.id = source_id WHERE model = ?"
    for other, provenance in connection.execute(sql, [SourceId.parse(name).model]):
        own = read_convention(provenance)
        if not own.agrees(convention if other == name else replace(convention, bos=None)):
            raise NeuronautError(
                f"{other} was harvested here with {own}, and this is with {convention}; choose the same with --bos and "
                "--special-tokens, or use another database"
            )


def read_convention(provenance: str) -> Convention:
    """The convention that a harvest's provenance names; BEFORE where it names none."""
    stored = json.loads(provenance).get("convention")
    return BEFORE if stored is None else Convention(**stored)


def _write_features(connection: sqlite3.Connection, source: SourceResult, source_id: int) -> None:
    density = source.count / max(source.tokens, 1)
    columns = (column.tolist() for column in (source.count, density, source.mean, source.peak, source.trough))
    histograms = (row.tobytes() for row in source.histogram.astype("<i8", copy=False))
    connection.executemany(
        "INSERT INTO features (source_id, idx, tokens, count, density, mean, peak, trough, histogram)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (source_id, idx) DO UPDATE SET tokens = excluded.tokens,"
        " count = excluded.count, density = excluded.density, mean = excluded.mean, peak = excluded.peak,"
        " trough = excluded.trough, histogram = excluded.histogram",
        ((source_id, index, source.tokens, *row) for index, row in enumerate(zip(*columns, histograms, strict=True))),
    )


def _feature_ids(connection: sqlite3.Connection, source_id: int) -> list[int]:
    """In the order of their indices."""
    rows = connection.execute("SELECT id FROM features WHERE source_id = ? ORDER BY idx", [source_id])
    return [row[0] for row in rows]


def _example_rows(
    kind: str, examples: ExampleList, feature_ids: Sequence[int], window_ids: NDArray[np.int64]
) -> Iterator[tuple[int, str, int, memoryview, bytes, bytes | None, bytes | None]]:
    if np.any(examples.features[1:] < examples.features[:-1]):
        raise ValueError(f"the {kind} examples are not sorted by feature")
    present, starts = np.unique(examples.features, return_index=True)
    ends = np.append(starts[1:], len(examples.features))
    windows = memoryview(pack_ids(window_ids[examples.windows])).cast("i")
    for feature, start, end in zip(present.tolist(), starts.tolist(), ends.tolist(), strict=True):
        activations = pack_activations(examples.activations[start:end])
        keys, weights = examples.attended or (None, None)
        yield (
            feature_ids[feature],
            kind,
            end - start,
            windows[start:end],
            activations,
            None if keys is None else pack_ids(keys[start:end]),
            None if weights is None else pack_activations(weights[start:end, None]),
        )


def add_explanation(connection: sqlite3.Connection, explanation: Explanation, *, redo: bool) -> tuple[int, bool]:
    """Add an explanation, without ranking it; returns the row's id, and whether the row holds this very explanation.

    A row of the same key stays as it is and is returned, unless it failed or `redo` asks for one more attempt.
    """
    target = (_FeatureIds(connection).find(explanation.feature), explanation.feature.negative)
    row = _explanation_row(explanation, target, created=now(), redo=redo)
    cursor = connection.execute(_ADD_EXPLANATION, row)
    if cursor.rowcount:
        assert cursor.lastrowid is not None
        return cursor.lastrowid, True
    if (same := _find(connection, target, "digest = ?", str(row["digest"]))) is not None:
        return same, True
    earlier = _find(connection, target, "status <> 'failed' AND key = ?", str(row["key"]))
    assert earlier is not None
    return earlier, False


def add_explanations(
    connection: sqlite3.Connection, explanations: Sequence[Explanation], scores: Sequence[Sequence[Score]] = ()
) -> int:
    """Add explanations as `add_explanation` does, and rank them together; returns how many are new.

    Those that are new bring their scores, where `scores` has some for each.
    """
    (newest,) = connection.execute("SELECT coalesce(max(id), 0) FROM explanations").fetchone()
    features, created = _FeatureIds(connection), now()
    rows = [
        _explanation_row(own, (features.find(own.feature), own.feature.negative), created=created, redo=False)
        for own in explanations
    ]
    added = connection.executemany(_ADD_EXPLANATION, rows).rowcount
    if scores:
        sql = "SELECT feature_id, negative, digest, id FROM explanations WHERE id > ?"
        new = {tuple(key): id_ for *key, id_ in connection.execute(sql, [newest])}
        keys = ((row["feature_id"], row["negative"], row["digest"]) for row in rows)
        for key, own in zip(keys, scores, strict=True):
            if key in new:
                add_scores(connection, new[key], own)
    rank_new(connection, newest)
    return added


_SAME_TARGET = "SELECT 1 FROM explanations WHERE feature_id = :feature_id AND negative = :negative"
_ADD_EXPLANATION = f"""INSERT INTO explanations (feature_id, negative, text, status, reason, rule, explainer, key,
        attempt, digest, seen, provenance, created, headline, predictor)
    SELECT :feature_id, :negative, :text, :status, :reason, :rule, :explainer, :key,
        coalesce((SELECT max(attempt) FROM explanations
                  WHERE feature_id = :feature_id AND negative = :negative AND key = :key), 0) + 1,
        :digest, :seen, :provenance, :created, :headline, :predictor
    WHERE NOT EXISTS ({_SAME_TARGET} AND digest = :digest)
        AND (:redo OR NOT EXISTS ({_SAME_TARGET} AND key = :key AND status <> 'failed'))"""


def _explanation_row(
    explanation: Explanation, target: tuple[int, bool], *, created: str, redo: bool
) -> dict[str, object]:
    digest = _explanation_digest(explanation)
    return {
        "feature_id": target[0],
        "negative": target[1],
        "text": clean(explanation.text),
        "status": explanation.status,
        "reason": clean(explanation.reason),
        "rule": clean(explanation.rule),
        "explainer": explanation.explainer,
        "key": str(explanation.provenance.get("key") or digest),
        "digest": digest,
        "seen": json.dumps(explanation.seen),
        "provenance": _json(explanation.provenance),
        "created": created,
        "headline": clean(explanation.headline),
        "predictor": clean(explanation.predictor),
        "redo": redo,
    }


def explanation_key(explanation: Explanation) -> str:
    """The key of the explainer that made it; one made by hand is its own key."""
    return str(explanation.provenance.get("key") or _explanation_digest(explanation))


def _explanation_digest(explanation: Explanation) -> str:
    provenance = explanation.provenance
    key, attempt = provenance.get("key"), provenance.get("attempt")
    parts = (explanation.explainer, key, attempt, explanation.text, explanation.reason)
    return content_digest(*parts, explanation.status, explanation.rule, sorted(explanation.seen))


class _FeatureIds:
    """Finds the row ids of features; a source is looked up once."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._sources: dict[SourceId, int | None] = {}

    def find(self, feature: Feature) -> int:
        """The row id; NeuronautError where the feature was not harvested."""
        if feature.source not in self._sources:
            found = self._connection.execute("SELECT id FROM sources WHERE name = ?", [str(feature.source)]).fetchone()
            self._sources[feature.source] = found and found[0]
        sql = "SELECT id FROM features WHERE source_id = ? AND idx = ?"
        row = self._connection.execute(sql, [self._sources[feature.source], feature.index]).fetchone()
        if row is None:
            source = feature.source
            raise NeuronautError(f"{feature} is not in the database; run: {harvest_command(source.model, source.site)}")
        return row[0]


def _find(connection: sqlite3.Connection, target: tuple[int, bool], condition: str, value: str) -> int | None:
    sql = f"SELECT id FROM explanations WHERE feature_id = ? AND negative = ? AND {condition} ORDER BY attempt DESC"
    row = connection.execute(sql, [*target, value]).fetchone()
    return None if row is None else row[0]


SCORE_CONTENT: tuple[str, ...] = (
    "scorer",
    "examples",
    "metric",
    "value",
    "reason",
    "ci_low",
    "ci_high",
    "n",
    "coverage",
    "baselines",
    "windows",
    "backend",
    "judge",
)
"""The columns that a score is compared by; where it comes from, and when, is no part of it."""


def add_scores(connection: sqlite3.Connection, explanation_id: int, scores: Sequence[Score]) -> None:
    """Add scores that are not there yet, without ranking; one on a window that the explanation saw is refused."""
    for score in scores:
        _check_score(score)
    columns = ("explanation_id", *SCORE_CONTENT, "digest", "provenance", "created")
    try:
        connection.executemany(
            f"INSERT INTO scores ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"
            " ON CONFLICT (explanation_id, digest) DO NOTHING",
            [(explanation_id, *_score_row(score)) for score in scores],
        )
    except sqlite3.IntegrityError as error:
        # The only trigger on scores is the one that refuses a leak.
        if error.sqlite_errorcode == sqlite3.SQLITE_CONSTRAINT_TRIGGER:
            raise NeuronautError(
                f"a score of explanation {explanation_id} was refused: its explainer saw one of the scored windows;"
                " score it on held-out examples"
            ) from error
        if error.sqlite_errorcode == sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY:
            raise NeuronautError(f"there is no explanation {explanation_id}; add it before its scores") from error
        raise


def _check_score(score: Score) -> None:
    numbers = (score.value, score.ci_low, score.ci_high, *score.baselines.values())
    if any(number is not None and not math.isfinite(number) for number in numbers):
        raise ValueError(f"the {score.metric} of {score.scorer} is not finite; wanted None with a reason")
    if (score.value is None) != (score.reason is not None):
        raise ValueError(f"the {score.metric} of {score.scorer} has value {score.value} and reason {score.reason!r}")


def _score_row(score: Score) -> tuple[object, ...]:
    content = (
        score.scorer,
        score.examples,
        score.metric,
        score.value,
        clean(score.reason),
        score.ci_low,
        score.ci_high,
        score.n,
        score.coverage,
        _json(score.baselines),
        json.dumps(score.windows),
        score.backend,
        score.judge,
    )
    return *content, content_digest(*content), _json(score.provenance), now()


def clean(text: str | None) -> str | None:
    """The text without what SQLite cannot hold or search: lone surrogates and NULs."""
    return None if text is None else text.encode("utf-8", "replace").decode().replace("\0", " ")


def now() -> str:
    """The time, UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _json(value: object) -> str:
    return _ENCODER.encode(value)


_ENCODER = json.JSONEncoder(sort_keys=True, default=str)


def keep_prompt(connection: sqlite3.Connection, hash: str, name: str, text: str) -> None:
    """Keep a prompt's text, so that requests can be rebuilt whatever the package ships later."""
    connection.execute("INSERT INTO prompts VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING", [hash, name, text, now()])


def choose_prompt(connection: sqlite3.Connection, name: str, hash: str | None) -> None:
    """Use the kept prompt of this hash under a name from now on; None goes back to the package's own."""
    connection.execute("DELETE FROM prompt_choices WHERE name = ?", [name])
    if hash is not None:
        connection.execute("INSERT INTO prompt_choices VALUES (?, ?)", [name, hash])


def chosen_prompts(connection: sqlite3.Connection) -> Mapping[str, str]:
    """Text of the prompts that were chosen, by name."""
    sql = "SELECT prompt_choices.name, text FROM prompt_choices JOIN prompts USING (hash) ORDER BY prompt_choices.name"
    return {row["name"]: row["text"] for row in connection.execute(sql)}


def kept_prompt(connection: sqlite3.Connection, hash: str) -> tuple[str, str] | None:
    """Name and text of a kept prompt."""
    row = connection.execute("SELECT name, text FROM prompts WHERE hash = ?", [hash]).fetchone()
    return None if row is None else (row["name"], row["text"])
