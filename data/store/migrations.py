"""The schema, as an append-only list of steps; `PRAGMA user_version` counts those a file has taken.

A step is never edited once released: a change is a new step at the end. All steps that a file
lacks are taken in one transaction, so a file is at a version or it is not.
"""

import json
import sqlite3
from collections.abc import Callable

from sqlite_utils import Database

from ...subject.errors import NeuronautError
from ..codec import content_digest
from ..judges import identify_judge
from .database import keep_write_ahead_log, transaction
from .listing_schema import LISTING
from .maps import MAPS
from .neighbours_schema import SHARED_WINDOWS, VECTORS, move_vectors, share_windows
from .ranks import rank_features
from .ranks_schema import INDEX_OF_HEADLINES, ORDER_OF_BEFORE, VIEWS_OF_RANKS
from .top_tokens import TOP_TOKENS
from .writing import SCORE_CONTENT

APPLICATION_ID = 0x4E524E54
"""Marks a file as Neuronaut's own ("NRNT")."""


def migrate(db: Database, path: str) -> None:
    """Bring the file to this code's version; an error if it is newer, or another program's."""
    version, tables = _read_version(db.conn)
    if version > len(MIGRATIONS):
        raise NeuronautError(
            f"{path} is of version {version}, this Neuronaut knows {len(MIGRATIONS)}; upgrade neuronaut to open it"
        )
    if version == 0 and tables:
        raise NeuronautError(f"{path} is another program's database; name a Neuronaut database or a new file")
    if version == len(MIGRATIONS):
        return
    keep_write_ahead_log(db, path)
    with transaction(db, path) as connection:
        # Another process may have migrated the file while this one waited for the lock.
        for step in MIGRATIONS[_read_version(connection)[0] :]:
            step(db)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


def _read_version(connection: sqlite3.Connection) -> tuple[int, int]:
    """Read a file's version and its number of tables at one moment: another process may be migrating it."""
    version, application, tables = connection.execute(
        "SELECT user_version, application_id, (SELECT count(*) FROM sqlite_master)"
        " FROM pragma_user_version, pragma_application_id"
    ).fetchone()
    return (version if application == APPLICATION_ID else 0), tables


def m001_evidence(db: Database) -> None:
    """Sources, their features, and the windows that are their examples."""
    for statement in (
        """CREATE TABLE sources (
            id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, model TEXT NOT NULL, site TEXT NOT NULL,
            dictionary TEXT, kind TEXT NOT NULL, width INTEGER NOT NULL, signed INTEGER NOT NULL,
            revision TEXT NOT NULL, model_revision TEXT NOT NULL)""",
        """CREATE TABLE harvests (
            source_id INTEGER PRIMARY KEY REFERENCES sources(id), digest TEXT NOT NULL, corpus TEXT NOT NULL,
            tokens INTEGER NOT NULL, window INTEGER NOT NULL, provenance TEXT NOT NULL, created TEXT NOT NULL)""",
        """CREATE TABLE features (
            id INTEGER PRIMARY KEY, source_id INTEGER NOT NULL REFERENCES sources(id), idx INTEGER NOT NULL,
            tokens INTEGER NOT NULL, count INTEGER NOT NULL, density REAL NOT NULL, mean REAL NOT NULL,
            peak REAL NOT NULL, trough REAL NOT NULL, histogram BLOB NOT NULL, UNIQUE (source_id, idx))""",
        "CREATE TABLE vocabularies (model TEXT PRIMARY KEY, tokens TEXT NOT NULL)",
        """CREATE TABLE windows (
            id INTEGER PRIMARY KEY, model TEXT NOT NULL, hash TEXT NOT NULL, tokens BLOB NOT NULL,
            split TEXT NOT NULL CHECK (split IN ('train', 'select', 'holdout')), document TEXT NOT NULL,
            UNIQUE (hash, model))""",
        """CREATE TABLE pool (
            model TEXT NOT NULL, window_id INTEGER NOT NULL REFERENCES windows(id),
            PRIMARY KEY (model, window_id)) WITHOUT ROWID""",
        """CREATE TABLE examples (
            feature_id INTEGER NOT NULL REFERENCES features(id), kind TEXT NOT NULL, n INTEGER NOT NULL,
            windows BLOB NOT NULL, activations BLOB NOT NULL, UNIQUE (feature_id, kind))""",
    ):
        db.conn.execute(statement)


def m002_explanations(db: Database) -> None:
    """Explanations of both tails, searchable, and their scores; no score on a window that was seen."""
    for statement in (
        """CREATE TABLE explanations (
            id INTEGER PRIMARY KEY, feature_id INTEGER NOT NULL REFERENCES features(id),
            negative INTEGER NOT NULL CHECK (negative IN (0, 1)), text TEXT, status TEXT NOT NULL, reason TEXT,
            rule TEXT, explainer TEXT NOT NULL, key TEXT NOT NULL, attempt INTEGER NOT NULL, digest TEXT NOT NULL,
            seen TEXT NOT NULL, provenance TEXT NOT NULL, created TEXT NOT NULL,
            CHECK ((text IS NULL) = (reason IS NOT NULL)),
            UNIQUE (feature_id, negative, key, attempt), UNIQUE (feature_id, negative, digest))""",
        """CREATE TABLE scores (
            id INTEGER PRIMARY KEY, explanation_id INTEGER NOT NULL REFERENCES explanations(id),
            scorer TEXT NOT NULL, examples TEXT NOT NULL, metric TEXT NOT NULL, value REAL, reason TEXT,
            ci_low REAL, ci_high REAL, n INTEGER NOT NULL, coverage REAL NOT NULL, baselines TEXT NOT NULL,
            windows TEXT NOT NULL, digest TEXT NOT NULL, provenance TEXT NOT NULL, created TEXT NOT NULL,
            CHECK ((value IS NULL) = (reason IS NOT NULL)), UNIQUE (explanation_id, digest))""",
        """CREATE TRIGGER scores_no_leak BEFORE INSERT ON scores
           WHEN EXISTS (SELECT 1 FROM json_each(new.windows) WHERE value IN (
               SELECT value FROM json_each((SELECT seen FROM explanations WHERE id = new.explanation_id))))
           BEGIN SELECT RAISE(ABORT, 'leak: the explanation saw a window of this score'); END""",
        """CREATE VIRTUAL TABLE explanations_fts USING fts5(
            text, content='explanations', content_rowid='id', tokenize='porter unicode61')""",
        """CREATE TRIGGER explanations_added AFTER INSERT ON explanations BEGIN
           INSERT INTO explanations_fts (rowid, text) VALUES (new.id, new.text); END""",
        """CREATE TRIGGER explanations_removed AFTER DELETE ON explanations BEGIN
           INSERT INTO explanations_fts (explanations_fts, rowid, text) VALUES ('delete', old.id, old.text); END""",
        """CREATE TRIGGER explanations_changed AFTER UPDATE OF text ON explanations BEGIN
           INSERT INTO explanations_fts (explanations_fts, rowid, text) VALUES ('delete', old.id, old.text);
           INSERT INTO explanations_fts (rowid, text) VALUES (new.id, new.text); END""",
    ):
        db.conn.execute(statement)


def m003_embeddings(db: Database) -> None:
    """Vectors of explanations for semantic search."""
    db.conn.execute(
        """CREATE TABLE embeddings (
            explanation_id INTEGER NOT NULL REFERENCES explanations(id), model TEXT NOT NULL,
            content_hash TEXT NOT NULL, vector BLOB NOT NULL, PRIMARY KEY (model, explanation_id)) WITHOUT ROWID"""
    )


def m004_views(db: Database) -> None:
    """What a reader of the file (a person in Datasette too) looks at first.

    An explanation's headline is its latest measured correlation of the simulation scorer on the top
    and random examples. The best explanation of a feature (each tail for itself) has the highest
    headline; those without one come after, the latest first, and abstentions last.
    """
    for statement in (
        """CREATE VIEW headlines AS
           SELECT id AS score_id, explanation_id, scorer, metric, value, ci_low, ci_high, n, coverage,
               (SELECT max(value) FROM json_each(scores.baselines)) AS baseline
           FROM scores AS scores
           WHERE scorer = 'simulation' AND examples = 'top_random' AND metric = 'correlation' AND id = (
               SELECT max(later.id) FROM scores AS later WHERE later.explanation_id = scores.explanation_id
               AND later.scorer = 'simulation' AND later.examples = 'top_random' AND later.metric = 'correlation'
               AND later.value IS NOT NULL)""",
        """CREATE VIEW best_explanations AS
           SELECT sources.name || ':' || features.idx || CASE ranked.negative WHEN 1 THEN '-' ELSE '' END AS feature,
               ranked.status, ranked.text AS explanation, ranked.reason, ranked.explainer, ranked.rule,
               ranked.value AS score, ranked.ci_low, ranked.ci_high, ranked.metric, ranked.scorer,
               ranked.baseline, ranked.n, ranked.created, ranked.id AS explanation_id, ranked.feature_id,
               ranked.negative, features.source_id, features.idx
           FROM (SELECT explanations.*, headlines.value, ci_low, ci_high, metric, scorer, baseline, n,
                     row_number() OVER (PARTITION BY feature_id, negative ORDER BY
                         text IS NULL, value IS NULL, value DESC, explanations.id DESC) AS place
                 FROM explanations LEFT JOIN headlines ON headlines.explanation_id = explanations.id) AS ranked
           JOIN features ON features.id = ranked.feature_id JOIN sources ON sources.id = features.source_id
           WHERE ranked.place = 1""",
        """CREATE VIEW feature_status AS
           SELECT sources.name || ':' || features.idx AS feature,
               coalesce(best.status, CASE features.count WHEN 0 THEN 'dead' ELSE 'unlabelled' END) AS status,
               best.explanation, best.explainer, best.score, best.ci_low, best.ci_high, best.metric, best.scorer,
               best.baseline, best.n, features.density, features.peak, features.count, best.explanation_id,
               features.id AS feature_id, 0 AS negative, features.source_id, features.idx
           FROM features JOIN sources ON sources.id = features.source_id
           LEFT JOIN best_explanations AS best ON best.feature_id = features.id AND best.negative = 0""",
        """CREATE VIEW feature_rows AS
           SELECT * FROM feature_status
           UNION ALL
           SELECT best.feature, best.status, best.explanation, best.explainer, best.score, best.ci_low, best.ci_high,
               best.metric, best.scorer, best.baseline, best.n, NULL, -features.trough, NULL, best.explanation_id,
               best.feature_id, 1, best.source_id, best.idx
           FROM best_explanations AS best JOIN features ON features.id = best.feature_id WHERE best.negative = 1""",
    ):
        db.conn.execute(statement)


def m005_calls(db: Database) -> None:
    """Every call of a language model, which is also the cache; prompts by their hash; judgements; batches under way.

    A request may have been answered several times, but only once well.
    """
    for statement in (
        """CREATE TABLE llm_calls (
            id INTEGER PRIMARY KEY, key TEXT NOT NULL, model TEXT NOT NULL, endpoint TEXT NOT NULL,
            prompt TEXT NOT NULL, request TEXT NOT NULL, status TEXT NOT NULL, reply TEXT NOT NULL, reason TEXT,
            detail BLOB NOT NULL, input_tokens INTEGER NOT NULL,
            output_tokens INTEGER NOT NULL, seconds REAL NOT NULL, cost REAL, created TEXT NOT NULL,
            CHECK (status IN ('ok', 'refused', 'truncated', 'empty', 'failed')),
            CHECK ((status = 'ok') = (reason IS NULL)))""",
        "CREATE UNIQUE INDEX llm_calls_answer ON llm_calls (key) WHERE status = 'ok'",
        "CREATE INDEX llm_calls_key ON llm_calls (key)",
        "CREATE TABLE prompts (hash TEXT PRIMARY KEY, name TEXT NOT NULL, text TEXT NOT NULL, created TEXT NOT NULL)",
        "CREATE TABLE prompt_choices (name TEXT PRIMARY KEY, hash TEXT NOT NULL REFERENCES prompts(hash))",
        """CREATE TABLE judgements (
            id INTEGER PRIMARY KEY, explanation_id INTEGER NOT NULL REFERENCES explanations(id), scorer TEXT NOT NULL,
            examples TEXT NOT NULL, role TEXT NOT NULL, kind TEXT NOT NULL, units INTEGER NOT NULL,
            items INTEGER NOT NULL, true BLOB NOT NULL, predicted BLOB NOT NULL, threshold REAL NOT NULL,
            windows TEXT NOT NULL,
            missing TEXT NOT NULL, provenance TEXT NOT NULL, round TEXT NOT NULL, digest TEXT NOT NULL,
            created TEXT NOT NULL, UNIQUE (explanation_id, digest))""",
        """CREATE TABLE llm_batches (
            id TEXT PRIMARY KEY, model TEXT NOT NULL, endpoint TEXT NOT NULL, remote TEXT, created TEXT NOT NULL)""",
        """CREATE TABLE llm_batch_requests (
            batch_id TEXT NOT NULL REFERENCES llm_batches(id), key TEXT NOT NULL, prompt TEXT NOT NULL,
            request TEXT NOT NULL, PRIMARY KEY (batch_id, key)) WITHOUT ROWID""",
    ):
        db.conn.execute(statement)


def m006_headlines(db: Database) -> None:
    """An explanation that was never simulated has the headline of another scorer.

    Scorers are not compared with each other: an explanation with a simulation score comes before one
    without, then the value decides.
    """
    for statement in (
        "CREATE TABLE headline_kinds (place INTEGER PRIMARY KEY, scorer TEXT, examples TEXT, metric TEXT)",
        """INSERT INTO headline_kinds VALUES (1, 'simulation', 'top_random', 'correlation'),
            (2, 'detection', 'windows', 'balanced_accuracy'), (3, 'fuzzing', 'marks', 'balanced_accuracy'),
            (4, 'embedding', 'windows', 'auroc'), (5, 'output', 'tokens', 'balanced_accuracy'),
            (6, 'output', 'continuations', 'balanced_accuracy'), (7, 'intruder', 'groups', 'balanced_accuracy'),
            (8, 'rule', 'top_random', 'correlation')""",
        "DROP VIEW headlines",
        # For one explanation: no join and no window function, so that SQLite looks it up without making the whole view.
        """CREATE VIEW headlines AS
           SELECT id AS score_id, explanation_id, scorer, metric, value, ci_low, ci_high, n, coverage,
               (SELECT max(value) FROM json_each(scores.baselines)) AS baseline,
               (SELECT place FROM headline_kinds AS kinds WHERE kinds.scorer = scores.scorer
                AND kinds.examples = scores.examples AND kinds.metric = scores.metric) AS place
           FROM scores AS scores
           WHERE id = (
               SELECT other.id FROM scores AS other JOIN headline_kinds USING (scorer, examples, metric)
               WHERE other.explanation_id = scores.explanation_id AND other.value IS NOT NULL
               ORDER BY place, other.id DESC LIMIT 1)""",
        "DROP VIEW best_explanations",
        """CREATE VIEW best_explanations AS
           SELECT sources.name || ':' || features.idx || CASE ranked.negative WHEN 1 THEN '-' ELSE '' END AS feature,
               ranked.status, ranked.text AS explanation, ranked.reason, ranked.explainer, ranked.rule,
               ranked.value AS score, ranked.ci_low, ranked.ci_high, ranked.metric, ranked.scorer,
               ranked.baseline, ranked.n, ranked.created, ranked.id AS explanation_id, ranked.feature_id,
               ranked.negative, features.source_id, features.idx
           FROM (SELECT explanations.*, headlines.value, ci_low, ci_high, metric, scorer, baseline, n,
                     row_number() OVER (PARTITION BY feature_id, negative ORDER BY text IS NULL,
                         headlines.place IS NULL, headlines.place, value DESC, explanations.id DESC) AS place
                 FROM explanations LEFT JOIN (
                     SELECT *, row_number() OVER (PARTITION BY explanation_id ORDER BY place, score_id DESC) AS turn
                     FROM (SELECT scores.id AS score_id, explanation_id, scorer, metric, value, ci_low, ci_high, n,
                               (SELECT max(value) FROM json_each(scores.baselines)) AS baseline, headline_kinds.place
                           FROM scores JOIN headline_kinds USING (scorer, examples, metric) WHERE value IS NOT NULL)
                 ) AS headlines ON headlines.explanation_id = explanations.id AND turn = 1) AS ranked
           JOIN features ON features.id = ranked.feature_id JOIN sources ON sources.id = features.source_id
           WHERE ranked.place = 1""",
    ):
        db.conn.execute(statement)


def m007_journal(db: Database) -> None:
    """Investigations: what they decided, predicted, saw and spent. Predictions and observations are only added."""
    for statement in (
        """CREATE TABLE investigations (
            id TEXT PRIMARY KEY, kind TEXT NOT NULL CHECK (kind IN ('feature', 'behaviour')), target TEXT NOT NULL,
            policy TEXT NOT NULL, settings TEXT NOT NULL, provenance TEXT NOT NULL, parent TEXT,
            status TEXT NOT NULL
                CHECK (status IN ('running', 'supported', 'open', 'no_explanation', 'budget', 'error')),
            reason TEXT, explanation_id INTEGER REFERENCES explanations(id), created TEXT NOT NULL,
            ended TEXT)""",
        """CREATE TABLE decisions (
            investigation TEXT NOT NULL REFERENCES investigations(id), step INTEGER NOT NULL, role TEXT NOT NULL,
            decision TEXT NOT NULL, created TEXT NOT NULL, PRIMARY KEY (investigation, step))""",
        """CREATE TABLE hypotheses (
            id INTEGER PRIMARY KEY, investigation TEXT NOT NULL REFERENCES investigations(id), name TEXT NOT NULL,
            step INTEGER NOT NULL, origin TEXT NOT NULL, body TEXT NOT NULL, created TEXT NOT NULL,
            UNIQUE (investigation, name))""",
        """CREATE TABLE experiments (
            id INTEGER PRIMARY KEY, investigation TEXT NOT NULL REFERENCES investigations(id), name TEXT NOT NULL,
            tool TEXT NOT NULL, args TEXT NOT NULL, purpose TEXT NOT NULL, survey INTEGER NOT NULL, role TEXT NOT NULL,
            round INTEGER NOT NULL, key TEXT NOT NULL, design BLOB NOT NULL, base TEXT NOT NULL, reference TEXT,
            created TEXT NOT NULL, UNIQUE (investigation, name))""",
        "CREATE INDEX experiments_key ON experiments (key)",
        """CREATE TABLE predictions (
            investigation TEXT NOT NULL, seq INTEGER NOT NULL, experiment TEXT NOT NULL, hypothesis TEXT NOT NULL,
            expected TEXT NOT NULL, created INTEGER NOT NULL, previous TEXT NOT NULL, hash TEXT NOT NULL,
            PRIMARY KEY (investigation, seq), UNIQUE (investigation, experiment, hypothesis),
            FOREIGN KEY (investigation, experiment) REFERENCES experiments(investigation, name),
            FOREIGN KEY (investigation, hypothesis) REFERENCES hypotheses(investigation, name))""",
        """CREATE TABLE observations (
            investigation TEXT NOT NULL, experiment TEXT NOT NULL,
            status TEXT NOT NULL CHECK (status IN ('ok', 'error')), result BLOB NOT NULL, reason TEXT,
            cost TEXT NOT NULL, created INTEGER NOT NULL, PRIMARY KEY (investigation, experiment),
            CHECK ((status = 'ok') = (reason IS NULL)),
            FOREIGN KEY (investigation, experiment) REFERENCES experiments(investigation, name))""",
        """CREATE TABLE peeks (
            investigation TEXT NOT NULL REFERENCES investigations(id), purpose TEXT NOT NULL, created TEXT NOT NULL,
            PRIMARY KEY (investigation, purpose))""",
        """CREATE TABLE ledger (
            investigation TEXT NOT NULL REFERENCES investigations(id), key TEXT NOT NULL, kind TEXT NOT NULL,
            experiments INTEGER NOT NULL, forwards INTEGER NOT NULL, calls INTEGER NOT NULL, tokens INTEGER NOT NULL,
            usd REAL NOT NULL, minutes REAL NOT NULL, created TEXT NOT NULL, PRIMARY KEY (investigation, key))""",
        """CREATE TABLE events (
            investigation TEXT NOT NULL REFERENCES investigations(id), seq INTEGER NOT NULL, time TEXT NOT NULL,
            kind TEXT NOT NULL, key TEXT NOT NULL, payload TEXT NOT NULL, PRIMARY KEY (investigation, seq),
            UNIQUE (investigation, key))""",
    ):
        db.conn.execute(statement)
    _guard_journal(db)


def _guard_journal(db: Database) -> None:
    """Let the database itself refuse what would spoil a journal."""
    for statement in (
        """CREATE TRIGGER observations_after_predictions BEFORE INSERT ON observations
           WHEN NOT EXISTS (SELECT 1 FROM experiments WHERE investigation = new.investigation
                            AND name = new.experiment AND survey = 1)
           AND NOT EXISTS (SELECT 1 FROM predictions WHERE investigation = new.investigation
                           AND experiment = new.experiment AND created < new.created)
           BEGIN SELECT RAISE(ABORT, 'an observation without an earlier prediction'); END""",
        *(
            f"""CREATE TRIGGER {table}_{action.lower()} BEFORE {action} ON {table}
                BEGIN SELECT RAISE(ABORT, '{table} are only ever added'); END"""
            for table in ("predictions", "observations")
            for action in ("UPDATE", "DELETE")
        ),
    ):
        db.conn.execute(statement)


def m008_claims(db: Database) -> None:
    """Requests that a process has claimed before it sends them, so that no other sends them too."""
    db.conn.execute(
        """CREATE TABLE llm_claims (
            key TEXT PRIMARY KEY, owner TEXT NOT NULL, machine TEXT NOT NULL, pid INTEGER NOT NULL,
            leased_until REAL NOT NULL) WITHOUT ROWID"""
    )


def m009_seals(db: Database) -> None:
    """What an investigation's rows were when it was left; those of before have none (seals.py)."""
    db.conn.execute(
        """CREATE TABLE seals (investigation TEXT PRIMARY KEY REFERENCES investigations(id), cells BLOB NOT NULL,
            ended INTEGER NOT NULL)"""
    )


def m010_labels(db: Database) -> None:
    """What an explanation leads with and the longer rule beside it; how and by whom a score was judged."""
    for statement in (
        "ALTER TABLE explanations ADD COLUMN headline TEXT",
        "ALTER TABLE explanations ADD COLUMN predictor TEXT",
        "ALTER TABLE scores ADD COLUMN backend TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE scores ADD COLUMN judge TEXT NOT NULL DEFAULT ''",
    ):
        db.conn.execute(statement)


def m011_ranks(db: Database) -> None:
    """The place, status and headline score of each explanation, and an index of headlines; who judged old scores.

    Explanations that are here keep their order, whatever new ones are ranked by.
    """
    for statement in (
        """CREATE TABLE ranks (
            explanation_id INTEGER PRIMARY KEY REFERENCES explanations(id) ON DELETE CASCADE,
            feature_id INTEGER NOT NULL REFERENCES features(id), negative INTEGER NOT NULL, place INTEGER NOT NULL,
            status TEXT NOT NULL, score_id INTEGER REFERENCES scores(id) ON DELETE SET NULL, baseline REAL)""",
        "CREATE INDEX ranks_best ON ranks (feature_id, negative) WHERE place = 1",
    ):
        db.conn.execute(statement)
    _name_judges(db)
    order = db.conn.execute(ORDER_OF_BEFORE).fetchall()
    rank_features(db.conn)
    db.conn.executemany("UPDATE ranks SET place = ? WHERE explanation_id = ?", order)
    for statement in (*VIEWS_OF_RANKS, *INDEX_OF_HEADLINES):
        db.conn.execute(statement)


def _name_judges(db: Database) -> None:
    """Say of every score who judged it, which is a part of its identity."""
    functions = {
        "judge_backend": lambda provenance: identify_judge(json.loads(provenance)).backend,
        "judge_name": lambda provenance: identify_judge(json.loads(provenance)).name,
        "content_digest": content_digest,
    }
    for name, function in functions.items():
        db.conn.create_function(name, -1, function, deterministic=True)
    unnamed = "UPDATE scores SET backend = judge_backend(provenance), judge = judge_name(provenance) WHERE judge = ''"
    db.conn.execute(unnamed)
    db.conn.execute(f"UPDATE scores SET digest = content_digest({', '.join(SCORE_CONTENT)})")


def m012_attended(db: Database) -> None:
    """Of the examples of heads: the token that the head attends to most at the example's peak, and how much."""
    for column in ("keys", "weights"):
        db.conn.execute(f"ALTER TABLE examples ADD COLUMN {column} BLOB")


def m013_listing(db: Database) -> None:
    """Rows and counts that lists read, kept by triggers (listing_schema.py)."""
    for statement in LISTING:
        db.conn.execute(statement)


def m014_vectors(db: Database) -> None:
    """Vectors as float16 in rows that never change, known to be of the present text by triggers (vectors.py)."""
    for statement in VECTORS:
        db.conn.execute(statement)
    move_vectors(db.conn)


def m015_shared_windows(db: Database) -> None:
    """Which features have a window among their strongest (shared_windows.py)."""
    for statement in SHARED_WINDOWS:
        db.conn.execute(statement)
    share_windows(db.conn)


def m016_norms(db: Database) -> None:
    """Of sources that write several sites: how long each feature's decoder is at each, float32, feature by feature."""
    db.conn.execute("ALTER TABLE sources ADD COLUMN norms BLOB")


def m017_tokens_and_maps(db: Database) -> None:
    """The tokens whose logits a feature raises and lowers the most, and maps."""
    for statement in (TOP_TOKENS, MAPS):
        db.conn.execute(statement)


def m018_unproven(db: Database) -> None:
    """Rank features again that were investigated: what is not proven must be clearly ahead."""
    investigated = "SELECT feature_id, negative FROM main.explanations WHERE provenance ->> 'verdict' IS NOT NULL"
    rank_features(db.conn, f"(feature_id, negative) IN ({investigated})")


MIGRATIONS: tuple[Callable[[Database], None], ...] = (
    m001_evidence,
    m002_explanations,
    m003_embeddings,
    m004_views,
    m005_calls,
    m006_headlines,
    m007_journal,
    m008_claims,
    m009_seals,
    m010_labels,
    m011_ranks,
    m012_attended,
    m013_listing,
    m014_vectors,
    m015_shared_windows,
    m016_norms,
    m017_tokens_and_maps,
    m018_unproven,
)
