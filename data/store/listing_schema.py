"""The schema of what lists and counts are read from: `listed`, a narrow row per feature, and `tallies`, counts of those.

Both follow from other tables: the view `listing` says what `listed` holds, and `tallies` is a GROUP BY of `listed`.
Triggers keep them so, whoever writes. Sort keys rise, and what has no value is infinite, so that a page begins where the
one before it ended by comparing (key, idx, negative); listing.py says how an index is chosen. An index that a new label
does not touch costs an import nothing: those of density and peak know no status.
"""

_FROM_RANKS = """coalesce(scores.value > ranks.baseline, 0) AS beats, scores.value AS score, ranks.baseline,
    coalesce(scores.scorer, '') AS scorer, coalesce(scores.metric, '') AS metric"""

_COLUMNS = """source_id, idx, negative, feature_id, explanation_id, status, has_text, alive, beats, score, baseline,
    scorer, metric, density, peak"""

_LISTING = f"""CREATE VIEW listing AS
    SELECT features.source_id, features.idx, 0 AS negative, features.id AS feature_id, ranks.explanation_id,
        coalesce(ranks.status, CASE features.count WHEN 0 THEN 'dead' ELSE 'unlabelled' END) AS status,
        explanations.text IS NOT NULL AS has_text, features.count > 0 AS alive, {_FROM_RANKS},
        features.density, features.peak
    FROM features LEFT JOIN ranks ON ranks.feature_id = features.id AND ranks.negative = 0 AND ranks.place = 1
    LEFT JOIN explanations ON explanations.id = ranks.explanation_id LEFT JOIN scores ON scores.id = ranks.score_id
    UNION ALL
    SELECT features.source_id, features.idx, 1, features.id, ranks.explanation_id, ranks.status,
        explanations.text IS NOT NULL, features.trough < 0, {_FROM_RANKS}, NULL, -features.trough
    FROM ranks JOIN features ON features.id = ranks.feature_id JOIN explanations ON explanations.id = ranks.explanation_id
    LEFT JOIN scores ON scores.id = ranks.score_id WHERE ranks.negative = 1 AND ranks.place = 1"""

_LISTED = """CREATE TABLE listed (
    source_id INTEGER NOT NULL, idx INTEGER NOT NULL, negative INTEGER NOT NULL, feature_id INTEGER NOT NULL,
    explanation_id INTEGER, status TEXT NOT NULL, has_text INTEGER NOT NULL, alive INTEGER NOT NULL,
    beats INTEGER NOT NULL, score REAL, baseline REAL, scorer TEXT NOT NULL, metric TEXT NOT NULL, density REAL,
    peak REAL NOT NULL, by_score REAL AS (ifnull(-score, 9e999)), by_worst REAL AS (ifnull(score, 9e999)),
    by_density REAL AS (ifnull(-density, 9e999)), by_peak REAL AS (-peak),
    PRIMARY KEY (source_id, idx, negative)) WITHOUT ROWID"""

_INDEXES = (
    "CREATE INDEX listed_score ON listed (source_id, status, beats, by_score, idx, negative)",
    "CREATE INDEX listed_worst ON listed (source_id, status, beats, by_worst, idx, negative)",
    "CREATE INDEX listed_density ON listed (source_id, by_density, idx, negative)",
    "CREATE INDEX listed_peak ON listed (source_id, by_peak, idx, negative)",
    "CREATE INDEX listed_explanation ON listed (explanation_id) WHERE explanation_id IS NOT NULL",
    "CREATE INDEX listed_negative ON listed (source_id, idx) WHERE negative = 1",
)

BIN = 0.05
"""The width of a bin of scores and of baselines."""
_KEY = ("source_id", "negative", "status", "has_text", "alive", "beats", "scorer", "metric", "bin", "baseline_bin")


def _bin(value: str) -> str:
    """The number of the bin that a value is in: a cast cuts towards zero, so what it cuts is made positive."""
    return f"coalesce(CAST({value} / {BIN} + 1000 AS INTEGER) - 1000, -1000)"


def _tallied(row: str) -> tuple[str, ...]:
    return *(f"{row}{column}" for column in _KEY[:-2]), _bin(f"{row}score"), _bin(f"{row}baseline")


TALLIED = f"""SELECT {", ".join(f"{value} AS {column}" for value, column in zip(_tallied(""), _KEY, strict=True))},
    count(*) AS n FROM listed GROUP BY {", ".join(map(str, range(1, len(_KEY) + 1)))}"""
"""What `tallies` holds, but for rows of zero."""

_TALLIES = f"""CREATE TABLE tallies (
    source_id INTEGER NOT NULL, negative INTEGER NOT NULL, status TEXT NOT NULL, has_text INTEGER NOT NULL,
    alive INTEGER NOT NULL, beats INTEGER NOT NULL, scorer TEXT NOT NULL, metric TEXT NOT NULL, bin INTEGER NOT NULL,
    baseline_bin INTEGER NOT NULL, n INTEGER NOT NULL, PRIMARY KEY ({", ".join(_KEY)})) WITHOUT ROWID"""


def _same(row: str) -> str:
    return f"({', '.join(_KEY)}) = ({', '.join(_tallied(row))})"


def _add(row: str) -> str:
    # An upsert would take the policy of the statement that fired the trigger.
    return f"""UPDATE tallies SET n = n + 1 WHERE {_same(row)};
       INSERT INTO tallies SELECT {", ".join(_tallied(row))}, 1 WHERE changes() = 0;"""


def _remove(row: str) -> str:
    return f"UPDATE tallies SET n = n - 1 WHERE {_same(row)};"


def _replace(feature: str, negative: str) -> str:
    """Make a row anew. While places change two explanations may both have the first; the later change settles it."""
    return f"""DELETE FROM listed WHERE (source_id, idx) = (SELECT source_id, idx FROM features WHERE id = {feature})
           AND negative = {negative};
       INSERT OR IGNORE INTO listed ({_COLUMNS}) SELECT {_COLUMNS} FROM listing
           WHERE feature_id = {feature} AND negative = {negative};"""


_OF_LABEL = "explanation_id, status, has_text, beats, score, baseline, scorer, metric"


def _relabel(feature: str) -> str:
    """Take what a label brings into the row of a feature anew; the row is there while the feature is."""
    return f"""UPDATE listed SET ({_OF_LABEL}) = (
           SELECT {_OF_LABEL} FROM listing WHERE feature_id = {feature} AND negative = 0)
       WHERE (source_id, idx) = (SELECT source_id, idx FROM features WHERE id = {feature}) AND negative = 0;"""


def _on_ranks(name: str, event: str, row: str, condition: str = "1") -> tuple[str, ...]:
    trigger = (
        f"CREATE TRIGGER ranks_{name}{{}} AFTER {event} ON ranks WHEN {row}.negative = {{}} AND ({condition}) BEGIN"
    )
    return (
        f"{trigger.format('', 0)} {_relabel(f'{row}.feature_id')} END",
        f"{trigger.format('_below', 1)} {_replace(f'{row}.feature_id', '1')} END",
    )


_TRIGGERS = (
    f"CREATE TRIGGER listed_added AFTER INSERT ON listed BEGIN {_add('new.')} END",
    f"CREATE TRIGGER listed_changed AFTER UPDATE ON listed BEGIN {_remove('old.')} {_add('new.')} END",
    f"CREATE TRIGGER listed_removed AFTER DELETE ON listed BEGIN {_remove('old.')} END",
    f"CREATE TRIGGER features_added AFTER INSERT ON features BEGIN {_replace('new.id', '0')} END",
    f"""CREATE TRIGGER features_changed AFTER UPDATE OF count, density, peak, trough ON features BEGIN
       {_replace("new.id", "0")} {_replace("new.id", "1")} END""",
    """CREATE TRIGGER features_removed AFTER DELETE ON features BEGIN
       DELETE FROM listed WHERE source_id = old.source_id AND idx = old.idx; END""",
    *_on_ranks("added", "INSERT", "new"),
    *_on_ranks("changed", "UPDATE", "new", "old.place = 1 OR new.place = 1"),
    *_on_ranks("removed", "DELETE", "old", "old.place = 1"),
    """CREATE TRIGGER scores_changed AFTER UPDATE OF value, scorer, metric ON scores BEGIN
       UPDATE ranks SET place = place WHERE explanation_id = new.explanation_id; END""",
    """CREATE TRIGGER explanations_emptied AFTER UPDATE OF text ON explanations
       WHEN (old.text IS NULL) <> (new.text IS NULL) BEGIN
       UPDATE ranks SET place = place WHERE explanation_id = new.id; END""",
)

_SHOWN = """listed.status, explanations.text AS explanation, explanations.headline, explanations.explainer, listed.score,
    scores.ci_low, scores.ci_high, scores.metric, scores.scorer, scores.backend, scores.judge, listed.baseline,
    scores.n"""

_VIEWS = (
    "DROP VIEW feature_rows",
    f"""CREATE VIEW feature_rows AS
       SELECT sources.name || ':' || listed.idx || CASE listed.negative WHEN 1 THEN '-' ELSE '' END AS feature,
           {_SHOWN}, listed.density, listed.peak, listed.explanation_id, listed.feature_id, listed.negative,
           listed.source_id, listed.idx, listed.beats, by_score, by_worst, by_density, by_peak
       FROM listed JOIN sources ON sources.id = listed.source_id
       LEFT JOIN explanations ON explanations.id = listed.explanation_id
       LEFT JOIN ranks ON ranks.explanation_id = listed.explanation_id
       LEFT JOIN scores ON scores.id = ranks.score_id""",
)

LISTING: tuple[str, ...] = (
    _LISTING,
    _LISTED,
    _TALLIES,
    f"INSERT INTO listed ({_COLUMNS}) SELECT {_COLUMNS} FROM listing ORDER BY source_id, idx, negative",
    f"INSERT INTO tallies {TALLIED}",
    *_INDEXES,
    *_TRIGGERS,
    *_VIEWS,
)
"""The statements that make and fill all of it."""
