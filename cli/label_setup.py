"""Opens what `label` and `score` need: here, and once more in every worker process."""

import os
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from .common import chosen_features, open_store, say
from .llm_options import open_client, server_of, split_options

if TYPE_CHECKING:
    from ..labelling.agenda import WorkerItem
    from ..labelling.label import Outcome
    from ..labelling.setup import LabelSetup
    from ..labelling.workers import Workers
    from ..llm.client import Mode
    from ..llm.tasks import LLMTask
    from ..rules.choose import Size


@contextmanager
def open_setup(
    features: tuple[str, ...],
    database: str,
    *,
    scorers: str,
    explainer_name: str | None,
    rule_size: "Size" = None,
    batch_tokens: int | None = None,
    limit: str | None = None,
    mode: "Mode" = "live",
    options: dict[str, Any],
    quiet: bool = False,
) -> "Generator[LabelSetup]":
    """Open the database, the model under study, and what explains and judges; closes them afterwards."""
    language, rest = split_options(options)
    with open_store(database, write=True) as store, open_client(language, store, budget=limit, mode=mode) as client:
        chosen = chosen_features(store, features)
        if not quiet:
            say(f"opening {chosen[0].source.model}")
        from ..labelling.opening import LoadOptions, stored_sources, stored_subject
        from ..labelling.setup import LabelOptions, set_up

        load_options = LoadOptions(**rest)
        subject = stored_subject(
            store, chosen[0].source.model, load_options, sources=[feature.source for feature in chosen]
        )
        subject.batching.tokens = batch_tokens
        sources = stored_sources(store, subject, chosen, load_options)
        wanted = LabelOptions(
            scorers=scorers,
            explainer=explainer_name,
            rule_size=rule_size,
            temperature=language.temperature_value,
            controls=language.control_mode,
            calibrated=not language.no_calibration,
            embedder=language.embedder,
        )
        yield set_up(store, subject, sources, chosen, wanted, client=client)


@contextmanager
def open_workers(
    count: int,
    features: tuple[str, ...],
    database: str,
    *,
    scorers: str,
    explainer_name: str,
    rule_size: "Size",
    batch_tokens: int | None,
    redo: bool,
    options: dict[str, Any],
    on: str | None,
) -> "Generator[Workers[WorkerItem, list[Outcome]] | None]":
    """Start workers that label, here or `on` a Ray cluster; None where this process does the work."""
    if count == 1 and on is None:
        yield None
        return
    from ..labelling.pools import start_workers

    open_quietly = partial(
        open_setup,
        features,
        os.path.abspath(database),
        scorers=scorers,
        explainer_name=explainer_name,
        rule_size=rule_size,
        batch_tokens=batch_tokens,
        options=options | {"base_url": server_of(split_options(options)[0])},
        quiet=True,
    )
    with start_workers(count, partial(_open_worker, open_quietly, redo=redo), on=on) as workers:
        yield workers


@contextmanager
def _open_worker(
    open_quietly: "Callable[[], AbstractContextManager[LabelSetup]]", *, redo: bool
) -> "Generator[Callable[[WorkerItem], LLMTask[list[Outcome]]]]":
    from ..labelling.label import LabelJob, performing

    with open_quietly() as setup:
        assert setup.explainer is not None
        # Its client asks nothing: it says only who is asked.
        parts = setup.store, setup.subject, setup.scorers, setup.client, setup.sources
        yield performing(LabelJob(*parts, chooser=setup.chooser, explainer=setup.explainer, redo=redo))
