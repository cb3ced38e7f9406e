"""The schema of ranks: views of the best explanations and what searches index, as the step `m011_ranks` made them."""

ORDER_OF_BEFORE = """SELECT row_number() OVER (PARTITION BY feature_id, negative ORDER BY text IS NULL,
        headlines.place IS NULL, headlines.place, value DESC, explanations.id DESC), explanations.id
    FROM explanations LEFT JOIN headlines ON headlines.explanation_id = explanations.id
    WHERE (feature_id, negative) IN (
        SELECT feature_id, negative FROM explanations GROUP BY feature_id, negative HAVING count(*) > 1)"""

_RANKED = """explanations.text AS explanation, explanations.headline, explanations.explainer,
    scores.value AS score, scores.ci_low, scores.ci_high, scores.metric, scores.scorer, scores.backend, scores.judge,
    ranks.baseline, scores.n"""

VIEWS_OF_RANKS = (
    "DROP VIEW feature_rows",
    "DROP VIEW feature_status",
    "DROP VIEW best_explanations",
    "DROP VIEW headlines",
    "DROP TABLE headline_kinds",
    f"""CREATE VIEW best_explanations AS
       SELECT sources.name || ':' || features.idx || CASE ranks.negative WHEN 1 THEN '-' ELSE '' END AS feature,
           ranks.status, {_RANKED}, explanations.reason, explanations.rule, explanations.created, ranks.explanation_id,
           ranks.feature_id, ranks.negative, features.source_id, features.idx
       FROM ranks JOIN explanations ON explanations.id = ranks.explanation_id
       JOIN features ON features.id = ranks.feature_id JOIN sources ON sources.id = features.source_id
       LEFT JOIN scores ON scores.id = ranks.score_id
       WHERE ranks.place = 1""",
    f"""CREATE VIEW feature_status AS
       SELECT sources.name || ':' || features.idx AS feature,
           coalesce(ranks.status, CASE features.count WHEN 0 THEN 'dead' ELSE 'unlabelled' END) AS status, {_RANKED},
           features.density, features.peak, features.count, ranks.explanation_id, features.id AS feature_id,
           0 AS negative, features.source_id, features.idx
       FROM features JOIN sources ON sources.id = features.source_id
       LEFT JOIN ranks ON ranks.feature_id = features.id AND ranks.negative = 0 AND ranks.place = 1
       LEFT JOIN explanations ON explanations.id = ranks.explanation_id
       LEFT JOIN scores ON scores.id = ranks.score_id""",
    """CREATE VIEW feature_rows AS
       SELECT * FROM feature_status
       UNION ALL
       SELECT best.feature, best.status, best.explanation, best.headline, best.explainer, best.score, best.ci_low,
           best.ci_high, best.metric, best.scorer, best.backend, best.judge, best.baseline, best.n, NULL,
           -features.trough, NULL, best.explanation_id, best.feature_id, 1, best.source_id, best.idx
       FROM best_explanations AS best JOIN features ON features.id = best.feature_id WHERE best.negative = 1""",
)

INDEX_OF_HEADLINES = (
    *(f"DROP TRIGGER explanations_{change}" for change in ("added", "removed", "changed")),
    "DROP TABLE explanations_fts",
    """CREATE VIRTUAL TABLE explanations_fts USING fts5(
        headline, text, content='explanations', content_rowid='id', tokenize='porter unicode61')""",
    """CREATE TRIGGER explanations_added AFTER INSERT ON explanations BEGIN
       INSERT INTO explanations_fts (rowid, headline, text) VALUES (new.id, new.headline, new.text); END""",
    """CREATE TRIGGER explanations_removed AFTER DELETE ON explanations BEGIN
       INSERT INTO explanations_fts (explanations_fts, rowid, headline, text)
       VALUES ('delete', old.id, old.headline, old.text); END""",
    """CREATE TRIGGER explanations_changed AFTER UPDATE OF headline, text ON explanations BEGIN
       INSERT INTO explanations_fts (explanations_fts, rowid, headline, text)
       VALUES ('delete', old.id, old.headline, old.text);
       INSERT INTO explanations_fts (rowid, headline, text) VALUES (new.id, new.headline, new.text); END""",
    "INSERT INTO explanations_fts (explanations_fts) VALUES ('rebuild')",
)
