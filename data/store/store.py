"""The store: evidence, explanations, scores and investigations of models, in one SQLite file.

`Store` is the only door to the database. Each of its methods that writes is one transaction, so a
process killed anywhere leaves the file as if the method had not been called. All SQL stands in this
folder: in this module and in those that it delegates to.
"""

import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from os import PathLike, fspath
from types import TracebackType
from typing import Self, Unpack

import numpy as np
from numpy.typing import NDArray

from ...subject.address import Feature, Selection, SourceId
from ...subject.convention import Convention
from ..padding import pad_ids
from ..records import PARTS, Evidence, Explanation, HarvestResult, Judgements, Mined, Score, SourceResult, Split
from . import listing, maps, merging, naming, people, reading, rows, tallies, words, writing
from .calls import CallLog
from .database import Row, connect, transaction, translate_errors
from .journal import Journal
from .listing import Conditions, Filter, Sort
from .maps import Map
from .migrations import migrate
from .ranks import rank_beside
from .rows import StoredExplanation
from .spool import Spool
from .top_tokens import TokenShifts, read_top_tokens
from .writing import read_convention


class Store:
    """A Neuronaut database, to be closed or used in a `with` statement.

    >>> [row["source"] for row in store.sources()]
    ['demo:mlp.1']
    >>> store.features("demo:mlp.1:0-2")[0].index
    0
    """

    def __init__(self, path: str | PathLike[str], *, create: bool = True) -> None:
        """Open the database, making it where there is none, unless `create` is false; ":memory:" is never written."""
        self.path = fspath(path)
        self._calls: CallLog | None = None
        self.db = connect(self.path, create=create)
        try:
            migrate(self.db, self.path)
        # An interrupt, too, leaves no file open.
        except BaseException:
            self.close()
            raise
        self._connection = self.db.conn
        if self.path != ":memory:" and Spool(self.path).exists():
            self.calls.write_spool()
        self._windows = reading.Windows(self._connection)

    @property
    def calls(self) -> CallLog:
        """The log of calls to language models."""
        self._calls = self._calls or CallLog(self.path, self.db)
        return self._calls

    @property
    def journal(self) -> Journal:
        """The journal of investigations."""
        return Journal(self.path, self.db)

    def close(self) -> None:
        """Close the file."""
        if self._calls is not None:
            self._calls.close()
        self.db.conn.close()

    def refuse_writes(self) -> None:
        """Let every later write through this store fail."""
        self._connection.execute("PRAGMA query_only = ON")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def size(self) -> int:
        """Bytes of the database, also of one in memory."""
        pages, page = (self._query(f"PRAGMA page_{what}")[0][f"page_{what}"] for what in ("count", "size"))
        return pages * page

    def transaction(self) -> AbstractContextManager[object]:
        """A block whose writes are all stored, or none; methods that write may be called inside."""
        return transaction(self.db, self.path)

    # Evidence

    def write_harvest(self, result: HarvestResult, mined: Future[Mined] | None = None) -> None:
        """Store a harvest; the same one again changes nothing, a new one of a source leaves its explanations alone.

        `mined` brings the lists that `result` lacks, if they are still being measured; all else is written meanwhile.
        """
        with transaction(self.db, self.path) as connection:
            writing.write_harvest(connection, result, mined)
        self._windows.forget()

    def write_tokens(self, sources: Sequence[SourceResult]) -> None:
        """Store the tokens that the features of stored sources raise, where these were found later."""
        with transaction(self.db, self.path) as connection:
            writing.write_tokens(connection, sources)

    def check_source(
        self, source: SourceId, *, revision: str, model_revision: str, width: int, convention: Convention
    ) -> None:
        """Raise NeuronautError if the source is here of other weights, or of text that was read otherwise."""
        with translate_errors(self.path):
            writing.check_same_source(self._connection, str(source), revision, model_revision, width)
            writing.check_same_convention(self._connection, str(source), convention)

    def convention(self, source: SourceId) -> Convention:
        """How the subject read the corpus of a source's harvest; NeuronautError where it was not harvested."""
        rows = self._query(
            "SELECT provenance FROM harvests JOIN sources ON sources.id = source_id WHERE name = ?", str(source)
        )
        if not rows:
            raise reading.missing_source(self._connection, source)
        return read_convention(rows[0]["provenance"])

    def sources(self) -> list[Row]:
        """A row per source, with its width, how many features are alive, `explained` and `weak`, and its harvest.

        `writes` is its site, or of a transcoder or crosscoder the sites that its features write, with commas.
        """
        with translate_errors(self.path):
            return tallies.read_sources(self._connection)

    def source(self, source: SourceId) -> Row:
        """The row of one source; NeuronautError where it is not here."""
        with translate_errors(self.path):
            found = tallies.read_sources(self._connection, str(source))
        if not found:
            raise reading.missing_source(self._connection, source)
        return found[0]

    def written_norms(self, source: SourceId) -> dict[str, NDArray[np.float32]]:
        """By site, how long the decoder of each feature is there, (feature,); empty where one site is written."""
        rows = self._query("SELECT norms, width FROM sources WHERE name = ?", str(source))
        if not rows or rows[0]["norms"] is None:
            return {}
        norms = np.frombuffer(rows[0]["norms"], "<f4").reshape(rows[0]["width"], -1)
        sites = str(self.source(source)["writes"]).split(", ")
        return dict(zip(sites, norms.T, strict=True))

    def top_tokens(self, feature: Feature) -> TokenShifts | None:
        """The tokens that a feature raises and lowers the most; None where its harvest found none."""
        with translate_errors(self.path):
            return read_top_tokens(self._connection, feature)

    def keep_map(self, drawn: Map) -> None:
        """Keep a map in place of the one of its source, kind and method."""
        with transaction(self.db, self.path) as connection:
            maps.write_map(connection, drawn)

    def maps(self) -> list[Row]:
        """Source, kind, method, number of points `n` and time `created` of each map."""
        with translate_errors(self.path):
            return maps.list_maps(self._connection)

    def map(self, source: SourceId, kind: str, method: str) -> Map | None:
        """A map; None where none was drawn."""
        with translate_errors(self.path):
            return maps.read_map(self._connection, source, kind, method)

    def labels(self, source: SourceId) -> dict[int, tuple[str, float | None, str | None]]:
        """Status, score and headline of each feature of a source, by index."""
        with translate_errors(self.path):
            return maps.read_labels(self._connection, source)

    def names(self) -> dict[str, tuple[str, ...]]:
        """What the directions of sources are called, by source; those without names are left out."""
        rows = self._query(
            "SELECT name, provenance FROM sources JOIN harvests ON source_id = sources.id WHERE kind = 'directions'"
        )
        told = {row["name"]: json.loads(row["provenance"]).get("directions", {}).get(row["name"], {}) for row in rows}
        return {source: tuple(own["names"]) for source, own in told.items() if own.get("names")}

    def with_names(self, rows: Iterable[Row]) -> list[Row]:
        """Rows with `name` beside each feature, null for what has none, where any direction here has a name."""
        names = self.names()

        def name(row: Row) -> str | None:
            feature = Feature.parse(row["feature"])
            return names[str(feature.source)][feature.index] if str(feature.source) in names else None

        return [{"feature": row["feature"], "name": name(row), **row} for row in rows] if names else list(rows)

    def columns(self) -> dict[str, list[str]]:
        """The columns of each table and view, by its name; not of what SQLite keeps for itself."""
        with translate_errors(self.path):
            names = self.db.table_names() + self.db.view_names()
            inner = tuple(f"{table}_" for table in self.db.table_names() if self.db.table(table).virtual_table_using)
            return {
                name: [column.name for column in self.db[name].columns]
                for name in names
                if not name.startswith(("sqlite_", *inner))
            }

    def models(self) -> list[str]:
        """The models that have a source here."""
        return [row["model"] for row in self._query("SELECT DISTINCT model FROM sources ORDER BY model")]

    def vocabulary(self, model: str) -> tuple[str, ...]:
        """Token string of every token id of a model."""
        with translate_errors(self.path):
            return self._windows.vocabulary(model)

    def model(self, name: str) -> str:
        """The name here of a model that is named so, or by the folder that it was harvested from; else what came."""
        with translate_errors(self.path):
            return naming.stored_model(self._connection, name)

    def feature(self, text: str) -> Feature:
        """The one feature that a text names, for example "gpt2:mlp.5:131" or "./models/gpt2:mlp.5:131"."""
        feature = Feature.parse(self._address(text))
        return self.resolve(Selection(feature.source, "indices", (feature.index,), negative=feature.negative))[0]

    def _address(self, text: str) -> str:
        with translate_errors(self.path):
            return naming.stored_address(self._connection, text)

    def resolve(self, selection: Selection, *, seed: int = 0) -> list[Feature]:
        """The features that a selection names, in its order; `random` draws among those alive, by `seed`.

        Alive is a feature with an activation above zero somewhere (below, for the negative tail).
        """
        source = str(selection.source)
        matches = self._query("SELECT id, width FROM sources WHERE name = ?", source)
        if not matches or any(index >= matches[0]["width"] for index in selection.indices):
            raise reading.missing_source(self._connection, selection.source)
        indices: Sequence[int] = selection.indices
        if selection.kind == "all":
            indices = range(matches[0]["width"])
        elif selection.kind != "indices":
            alive = "trough < 0" if selection.negative else "count > 0"
            sql = f"SELECT idx FROM features WHERE source_id = ? AND {alive} ORDER BY idx"
            indices = [row["idx"] for row in self._query(sql, matches[0]["id"])]
        if selection.kind == "random":
            indices = sorted(random.Random(seed).sample(indices, min(selection.count, len(indices))))
        return [Feature(selection.source, index, selection.negative) for index in indices]

    def features(self, text: str) -> list[Feature]:
        """The features that a text names, for example "gpt2:mlp.5:0-99"; a bare source means those alive.

        The model is named as in `sources`, or by its folder wherever that lies: "./models/gpt2:mlp.5:0-99".
        """
        return self.resolve(Selection.parse(self._address(text)))

    def evidence(self, feature: Feature) -> Evidence:
        """A feature's statistics and examples, in splits that share no document and no near-duplicate text.

        For the negative tail the signs are turned: its top examples are the bottom ones, its peak is minus the
        trough. It has no quantile sample, no near misses and no histogram, which are taken from positive activations.
        """
        with translate_errors(self.path):
            return reading.read_evidence(self._connection, self._windows, feature)

    def statistics(self, source: SourceId) -> reading.SourceStatistics | None:
        """What a harvest counted of every feature of a source; None where nothing of it was harvested."""
        with translate_errors(self.path):
            return reading.read_statistics(self._connection, source)

    def pool(self, model: str) -> dict[Split, NDArray[np.int64]]:
        """Token ids of the pool, a uniform sample of the corpus: (window, position) in each split, padding below 0."""
        with translate_errors(self.path):
            pool = reading.read_pool(self._connection, model)
        length = max((len(window.ids) for windows in pool.values() for window in windows), default=0)
        return {split: pad_ids([window.ids for window in pool[split]], width=length) for split in PARTS}

    def pool_windows(self, model: str, split: Split) -> list[reading.PoolWindow]:
        """The windows of the pool in a split, with digest and document, in the order of `pool`."""
        with translate_errors(self.path):
            return reading.read_pool(self._connection, model)[split]

    # Explanations and scores

    def add_explanation(self, explanation: Explanation, *, redo: bool = False) -> int:
        """Store an explanation and return its id; see `add_result`."""
        return self.add_result(explanation, (), redo=redo)

    def add_scores(self, explanation_id: int, scores: Sequence[Score]) -> None:
        """Store scores of an explanation; an error, and none is stored, if it saw one of their windows."""
        with transaction(self.db, self.path) as connection:
            before = connection.total_changes
            writing.add_scores(connection, explanation_id, scores)
            if connection.total_changes > before:
                rank_beside(connection, explanation_id)

    def rate(self, explanation_id: int, value: float, *, author: str) -> None:
        """Store a person's rating of an explanation, from 1 to 5, in place of an earlier one of theirs."""
        with transaction(self.db, self.path) as connection:
            people.rate(connection, explanation_id, value, author=author)

    def add_judgements(self, explanation_id: int, judgements: Sequence[Judgements]) -> None:
        """Store the judgements of one scoring of an explanation; the same ones twice change nothing."""
        with transaction(self.db, self.path) as connection:
            rows.add_judgements(connection, explanation_id, judgements)

    def judgements(self, explanation_id: int) -> list[list[Judgements]]:
        """The stored judgements of an explanation, one list per scoring."""
        with translate_errors(self.path):
            return rows.read_judgements(self._connection, explanation_id)

    def add_result(
        self,
        explanation: Explanation,
        scores: Sequence[Score],
        *,
        judgements: Sequence[Judgements] = (),
        redo: bool = False,
    ) -> int:
        """Store an explanation with its scores and the judgements that are worth keeping, and return its id.

        If the feature has one of the same `provenance["key"]` that has not failed, that one's id is returned and
        nothing is stored, unless `redo` asks for a further attempt.
        """
        with transaction(self.db, self.path) as connection:
            before = connection.total_changes
            explanation_id, is_same = writing.add_explanation(connection, explanation, redo=redo)
            if is_same:
                writing.add_scores(connection, explanation_id, scores)
            if connection.total_changes > before:
                rank_beside(connection, explanation_id)
            if is_same:
                rows.add_judgements(connection, explanation_id, judgements)
        return explanation_id

    def add_explanations(self, explanations: Sequence[Explanation], scores: Sequence[Sequence[Score]] = ()) -> int:
        """Store explanations as `add_explanation` does, all or none; returns how many were not here yet.

        With `scores`, a sequence for each explanation, those that are new are stored with theirs.
        """
        with transaction(self.db, self.path) as connection:
            return writing.add_explanations(connection, explanations, scores)

    def labelled(self, features: Iterable[Feature], explainer_key: str) -> set[Feature]:
        """Those features that have an explanation (or an abstention, but no failure) of this explainer key."""
        candidates = set(features)
        sql = """SELECT idx, negative FROM explanations JOIN features ON features.id = feature_id
            JOIN sources ON sources.id = source_id WHERE name = ? AND key = ? AND status <> 'failed'"""
        labelled: set[Feature] = set()
        for source in {feature.source for feature in candidates}:
            rows_ = self._query(sql, str(source), explainer_key)
            labelled |= {Feature(source, row["idx"], bool(row["negative"])) for row in rows_}
        return candidates & labelled

    def explanations(self, of: Feature | SourceId) -> list[StoredExplanation]:
        """All explanations of a feature, or of each feature of a source, the best first (ranking.py)."""
        condition, values = "sources.name = ?", [str(of)]
        if isinstance(of, Feature):
            condition += " AND features.idx = ? AND explanations.negative = ?"
            values = [str(of.source), of.index, of.negative]
        with translate_errors(self.path):
            return list(rows.read_explanations(self._connection, condition, values))

    def explanation(self, explanation_id: int) -> StoredExplanation | None:
        """The explanation of an id; None where there is none."""
        with translate_errors(self.path):
            return next(rows.read_explanations(self._connection, "explanations.id = ?", [explanation_id]), None)

    def best(self, feature: Feature) -> StoredExplanation | None:
        """The best explanation of a feature (ranking.py); None where there is none."""
        return next(iter(self.explanations(feature)), None)

    def another_explanation(self, feature: Feature, *, with_rule: bool) -> Explanation | None:
        """The best explanation of another feature of the same source, for a control; None where there is none."""
        with translate_errors(self.path):
            explanation_id = rows.another_explanation(self._connection, feature, with_rule=with_rule)
        stored = None if explanation_id is None else self.explanation(explanation_id)
        return None if stored is None else stored.explanation

    def scores(self, explanation_id: int) -> list[Score]:
        """The scores of an explanation."""
        with translate_errors(self.path):
            return rows.read_scores(self._connection, explanation_id)

    # Prompts

    def keep_prompt(self, hash: str, name: str, text: str, *, use: bool = False) -> None:
        """Keep the text of a prompt; with `use`, it takes the place of the package's own of this name."""
        with transaction(self.db, self.path) as connection:
            writing.keep_prompt(connection, hash, name, text)
            if use:
                writing.choose_prompt(connection, name, hash)

    def drop_prompt(self, name: str) -> None:
        """Use the package's own prompt of this name again."""
        with transaction(self.db, self.path) as connection:
            writing.choose_prompt(connection, name, None)

    def chosen_prompts(self) -> Mapping[str, str]:
        """Text of the user's own prompts, by the name of the one that each replaces."""
        with translate_errors(self.path):
            return writing.chosen_prompts(self._connection)

    def kept_prompt(self, hash: str) -> tuple[str, str] | None:
        """Name and text of a prompt that was used once, by its hash."""
        with translate_errors(self.path):
            return writing.kept_prompt(self._connection, hash)

    # Rows

    def list_rows(
        self,
        source: str | SourceId | None = None,
        *,
        limit: int | None = None,
        sort: Sort = "feature",
        after: Feature | None = None,
        **conditions: Unpack[Conditions],
    ) -> list[Row]:
        """A row of `listing.ROW_KEYS` per feature; `after` is the last one of the page before, in the same order."""
        chosen = Filter(self.known_source(source), conditions)
        with translate_errors(self.path):
            return list(listing.iterate_rows(self._connection, chosen, sort=sort, limit=limit, after=after))

    def rows_with_people(self, source: str | SourceId | None = None, **conditions: Unpack[Conditions]) -> Iterator[Row]:
        """The rows of `iterate_rows`, with `author` and `ratings` beside those that people wrote or rated."""
        with translate_errors(self.path):
            yield from people.add_people(self._connection, self.iterate_rows(source, **conditions))

    def iterate_rows(self, source: str | SourceId | None = None, **conditions: Unpack[Conditions]) -> Iterator[Row]:
        """The rows of `list_rows`, one in memory at a time."""
        chosen = Filter(self.known_source(source), conditions)
        with translate_errors(self.path):
            yield from listing.iterate_rows(self._connection, chosen, sort="feature")

    def row(self, feature: Feature) -> Row | None:
        """The row of one feature, or of a negative tail, which has one only where it was explained."""
        with translate_errors(self.path):
            return rows.read_row(self._connection, feature)

    def iterate_best(self, source: SourceId, **conditions: Unpack[Conditions]) -> Iterator[StoredExplanation]:
        """The best explanation of each feature of a source that has a text, one at a time; not of negative tails."""
        chosen = Filter(self.known_source(source), conditions)
        with translate_errors(self.path):
            for explanation_id in rows.iterate_best(self._connection, chosen):
                yield from rows.read_explanations(self._connection, "explanations.id = ?", [explanation_id])

    def search_rows(
        self,
        query: str,
        *,
        source: str | SourceId | None = None,
        limit: int | None = 20,
        markers: tuple[str, str] | None = None,
        **conditions: Unpack[Conditions],
    ) -> list[Row]:
        """Rows whose best explanation holds the query's words, with `rank` from 1, and `similarity` None.

        `markers` are put around the words that matched.
        """
        chosen = Filter(self.known_source(source), conditions)
        with translate_errors(self.path):
            return words.search_rows(self._connection, query, chosen, limit=limit, markers=markers)

    def known_source(self, source: str | SourceId | None) -> str | None:
        """The source's name; an error if it is not here."""
        if source is None:
            return None
        known = SourceId.parse(self._address(str(source)))
        if not self._query("SELECT 1 FROM sources WHERE name = ?", str(known)):
            raise reading.missing_source(self._connection, known)
        return str(known)

    # The file

    def status(self) -> Row:
        """Path, version, size in bytes, and counts of what is stored."""
        with translate_errors(self.path):
            return merging.status(self.db, self.path)

    def backup(self, path: str | PathLike[str]) -> None:
        """Copy the database into a new file, also while it is in use; replies that wait in its spool go along."""
        with translate_errors(self.path):
            merging.backup(self._connection, self.path, fspath(path))

    def merge(self, other: str | PathLike[str]) -> dict[str, int]:
        """Add what another database holds, nothing twice; the other is not changed. Returns counts of added rows."""
        if not isinstance(other, str):
            other = fspath(other)
        return merging.merge(self.db, self.path, other)

    def _query(self, sql: str, *values: object) -> list[Row]:
        with translate_errors(self.path):
            return [dict(row) for row in self._connection.execute(sql, values)]
