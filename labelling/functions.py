"""Opens functions of text as subjects: for a harvest, and again for what was harvested."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..data.corpus import Corpus
from ..data.store.store import Store
from ..subject.errors import NeuronautError
from ..subject.function_subject import FunctionSubject
from ..subject.words import frequent_words, word_tokenizer, words_of


def new_function(
    store: Store,
    location: str,
    corpus: Corpus,
    *,
    name: str | None,
    tokenizer: str | None,
    on_progress: Callable[[str], None] = lambda _: None,
) -> FunctionSubject:
    """Open a function for a harvest: with a model's tokenizer, or with one of the corpus's words.

    What is in the store by this name keeps its words.
    """
    bare = FunctionSubject.open(location, name=name, tokenizer=tokenizer)
    if tokenizer is not None:
        return bare
    if _has_words(store, bare.name):
        words = words_of(store.vocabulary(bare.name))
    else:
        on_progress(f"counting the words of {corpus.name}, for a tokenizer (--tokenizer names a model's)")
        words = frequent_words(document.text for _, document in corpus)
    return FunctionSubject(bare.functions, word_tokenizer(words), name=bare.name)


def function_paths(subject: FunctionSubject, tokenizer: str | None) -> dict[str, str]:
    """Where a function and its tokenizer are found again, for the store."""
    paths = {subject.name: subject.functions.location}
    if tokenizer is not None:
        folder = Path(tokenizer).expanduser()
        paths[_tokenizer_key(subject.name)] = str(folder.resolve()) if folder.exists() else tokenizer
    return paths


def stored_function(store: Store, row: Mapping[str, Any], location: str | None) -> FunctionSubject:
    """Open the function that a source was harvested from; `location` is where it lies now, if not where it did."""
    model, paths = row["model"], row["provenance"].get("paths", {})
    found = location or paths.get(model)
    if found is None:
        raise NeuronautError(
            f"{model} was a function in memory; say with --model where it is, as FILE.py:NAME or a URL"
        )
    tokenizer = paths.get(_tokenizer_key(model))
    words = words_of(store.vocabulary(model)) if tokenizer is None else ()
    subject = FunctionSubject.open(found, name=model, tokenizer=tokenizer, words=words)
    if subject.revision != row["model_revision"]:
        raise NeuronautError(
            f"{row['source']} was harvested with another text of {found} (revision {row['model_revision']}, now "
            f"{subject.revision}); put that back, or harvest this one by another --model-name"
        )
    return subject


def _has_words(store: Store, name: str) -> bool:
    rows = [row for row in store.sources() if row["model"] == name and row["kind"] == FunctionSubject.unit_kind]
    return bool(rows) and _tokenizer_key(name) not in rows[0]["provenance"].get("paths", {})


def _tokenizer_key(name: str) -> str:
    # No model's name holds a colon.
    return f"{name}:tokenizer"
