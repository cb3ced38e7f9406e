"""Opens the subject, its sources and its corpus from what was typed; everything heavy that verbs need.

A harvest stores where the model and its dictionaries lie, and the dtype, so that labelling finds
them again by the feature's address alone; the options of `LoadOptions` say otherwise.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..causal.prompts import Batch
from ..data.corpus import Corpus
from ..data.harvest.activations import read_counted, read_inputs, read_together
from ..data.harvest.massive import norm_limits
from ..data.padding import cut
from ..data.store.evidence import recorded_source, recorded_subject
from ..data.store.store import Store
from ..subject.address import Feature, SourceId, name_random, split_random
from ..subject.dictionary import Dictionary
from ..subject.direction_matrix import Directions, holds_directions, read_directions
from ..subject.errors import NeuronautError
from ..subject.formats import declared_site
from ..subject.formats_layers import MissingLayersError, find_layers
from ..subject.formats_sites import same_site
from ..subject.function_subject import FunctionSubject
from ..subject.gate import Gate, Sweep, check, foreign_script, rebuild_by_others, sweep
from ..subject.gate_order import orders, sweep_orders
from ..subject.head_writes import ALONG
from ..subject.model import Subject, join_sites
from ..subject.opening import built_in, load_source, open_source
from ..subject.sources import Source, join_vectors
from .functions import stored_function
from .harvested import as_harvested
from .load_options import LoadOptions as LoadOptions

GATE_TOKENS = 4096
"""Tokens of the corpus that a dictionary is tried on."""
_GATE_WINDOWS = 4
"""Windows of one document among these."""
_STREAMED = 16
"""Characters that are read of a streamed dataset for each token of the budget."""


def load_subject(model: str, load_options: LoadOptions, *, name: str | None = None) -> Subject:
    """Load a model, on the GPU where there is one and no device is named."""
    device = load_options.device or "auto"
    dtype, asked = load_options.dtype or "float32", load_options
    subject = Subject.load(model, device=device, dtype=dtype, name=name, bos=asked.bos)
    special = asked.special_tokens or asked.chat
    return subject.with_convention(replace(subject.convention, special_tokens=special, chat=asked.chat))


class Loader(Protocol):
    """Loads a model, or gives one that is loaded."""

    def __call__(self, model: str, load_options: LoadOptions, *, name: str | None = None) -> Subject:
        """As `load_subject`."""
        ...


def settle_bos(subject: Subject, sources: Iterable[Source], *, asked: str) -> Subject:
    """The subject with BOS as its dictionaries were trained, where it was not `asked` otherwise.

    Raises NeuronautError where they differ.
    """
    declared = {
        str(source.id): source.prepend_bos
        for source in sources
        if isinstance(source, Dictionary) and source.prepend_bos is not None
    }
    if asked != "auto" or not declared:
        return subject
    if len(set(declared.values())) > 1:
        raise NeuronautError(
            f"of {', '.join(declared)} some were trained with BOS before the text and some without; harvest them one "
            "by one, or choose with --bos"
        )
    ((name, bos), *_) = declared.items()
    if subject.convention.bos is None or subject.convention.bos == bos:
        return subject
    return subject.with_convention(replace(subject.convention, bos=bos, reason=f"{name} was trained so"))


def load_corpus(
    model: str, corpus: str | None, *, tokens: int | None, text_column: str, encoding: str, chat: bool = False
) -> Corpus:
    """Load the corpus that was named; of a streamed dataset, the beginning that the token budget is drawn from."""
    if corpus is None and split_random(model)[0] != "demo":
        raise NeuronautError(
            f"no corpus is named for {model}; add --corpus FILE, FOLDER, stdlib, or a Hugging Face dataset, "
            "for example --corpus wikitext:wikitext-103-raw-v1"
        )
    source = corpus or "stdlib"
    loaded = Corpus.load(source, text_column=text_column, encoding=encoding, chat=chat)
    streamed = source not in ("stdlib", "-") and not Path(source).expanduser().exists()
    return loaded.head(_STREAMED * tokens) if streamed and tokens is not None else loaded


def sites_of(subject: Subject, text: str) -> list[str]:
    """Expand `mlp` to that site of every layer, `mlp.0-3` to these layers; anything else stands for itself."""
    if every := [site for site in subject.sites if site.startswith(f"{text}.")]:
        return every
    if match := re.fullmatch(r"([a-z_]+)\.([0-9]{1,4})-([0-9]{1,4})", text):
        if int(match[2]) > int(match[3]):
            raise NeuronautError(f"{text} is no range of layers; wanted the first before the last, as in mlp.0-3")
        return [f"{match[1]}.{layer}" for layer in range(int(match[2]), int(match[3]) + 1)]
    return [text]


def check_name(name: str | None, load_options: LoadOptions) -> None:
    """Raise NeuronautError where a name is given and nothing that it could name."""
    if name is not None and load_options.sae is None and load_options.along is None:
        raise NeuronautError(f"--name {name} names the dictionary of --sae, and none is given; add --sae PATH")


def open_sources(
    subject: Subject, sites: Sequence[str], load_options: LoadOptions, *, name: str | None, seed: int | None = None
) -> list[Source]:
    """Open the sources that a harvest names, each once; with a dictionary, one site or none (the declared one).

    With a `seed`, the matrices of all of them, which must be dictionaries, are drawn again.
    """
    if load_options.along is not None:
        return _open_along(subject, sites, load_options, name=name, seed=seed)
    if load_options.sae is not None:
        return [*_open_named(subject, sites, load_options, name=name, seed=seed)]
    if not sites:
        raise NeuronautError(f"no site is named; {subject.name} has {join_sites(subject.sites)}")
    sources: dict[SourceId, Source] = {}
    for text in sites:
        family, _, dictionary = text.partition("@")
        if seed is not None and not dictionary:
            raise NeuronautError(f"{text} is of neurons, and --randomize dictionary wants SITE@NAME; or use weights")
        dictionary = dictionary if seed is None else name_random(dictionary, seed)
        for site in sites_of(subject, family):
            subject.width(site)
            source = SourceId(subject.name, site, dictionary or None)
            sources[source] = sources.get(source) or open_source(subject, source)
    return list(sources.values())


def _open_along(
    subject: Subject, sites: Sequence[str], load_options: LoadOptions, *, name: str | None, seed: int | None
) -> list[Source]:
    """Open the heads of layers as what they write along a direction."""
    along = load_options.along
    assert along is not None
    if load_options.sae is not None or seed is not None or not sites:
        raise NeuronautError("--along is of heads: name their sites, such as head.3, without --sae and --randomize")
    called = name or re.sub(r"[^\w-]+", "-", Path(along.removeprefix("token:")).stem).strip("-")
    sources: list[Source] = []
    for site in (site for text in sites for site in sites_of(subject, text)):
        source = SourceId.parse(f"{subject.name}:{site}@{called}")
        source.check()
        sources.append(open_source(subject, source, path=_place_along(along)))
    return sources


def _place_along(along: str) -> str:
    return ALONG + (along if along.startswith("token:") else absolute(along))


def _open_named(
    subject: Subject, sites: Sequence[str], load_options: LoadOptions, *, name: str | None, seed: int | None
) -> list[Dictionary | Directions]:
    """Open the dictionary of --sae; of a folder of layers those of the sites that are named, or all."""
    path = load_options.sae
    assert path is not None
    layers = None if holds_directions(path) else find_layers(path)
    if len(sites) > 1 and layers is None:
        raise NeuronautError(f"{len(sites)} sites came with --sae; wanted the one that the dictionary was trained on")
    declared = layers.sites if layers else [_declared_site(path, load_options)] if not sites else []
    texts = [text for named in sites for text in sites_of(subject, named)] if layers else sites
    opened: list[Dictionary | Directions] = []
    for site, _, dictionary_name in [text.partition("@") for text in texts] or [(site, "", "") for site in declared]:
        if site is None:
            raise NeuronautError(f"{path} does not say which site it was trained on; name it, for example resid_post.2")
        called = name or dictionary_name or _name_dictionary(path)
        source = SourceId.parse(f"{subject.name}:{site}@{called if seed is None else name_random(called, seed)}")
        source.check()
        opened.append(_load_named(subject, source, path, load_options))
    return opened


def _declared_site(path: str, load_options: LoadOptions) -> str | None:
    if holds_directions(path):
        return read_directions(path).site
    return declared_site(path, allow_pickle=load_options.allow_pickle)


def _load_named(subject: Subject, source: SourceId, path: str, load_options: LoadOptions) -> Dictionary | Directions:
    options = {"norm_scale": load_options.norm_scale, "allow_pickle": load_options.allow_pickle}
    return load_source(subject, source, path, **options)


def _name_dictionary(path: str) -> str:
    """Name a dictionary after its folder, directions after their file."""
    target = Path(path).expanduser()
    if holds_directions(path):
        target = target.with_suffix("")
    target = target.parent if target.is_file() else target
    return re.sub(r"[:@\s]+", "-", (target.resolve() if target.exists() else target).name)


def places(subject: Subject, model: str, sources: Iterable[Source], load_options: LoadOptions) -> dict[str, str]:
    """Find where the model and the dictionary lie, for the store: paths by model name and by source."""
    place = _place_along(load_options.along) if load_options.along else load_options.sae and absolute(load_options.sae)
    return {subject.name: absolute(model)} | ({str(source.id): place for source in sources} if place else {})


def absolute(path: str) -> str:
    """The path from the root where something lies there; else as it came: the hub's, or the built-in model's."""
    base, seed = split_random(path)
    here = Path(base).expanduser()
    if base == "demo" or not here.exists():
        return path
    return str(here.resolve()) if seed is None else name_random(str(here.resolve()), seed)


# The gate


def pass_gate(
    subject: Subject, sources: Iterable[Source], corpus: Corpus, *, window: int, force: bool
) -> Iterator[str]:
    """Try every dictionary on the corpus's vectors, and yield lines on how well it rebuilds them and what is suspect.

    Of directions, which rebuild nothing, the line tells the scale that they are read at.

    Raises NeuronautError where a dictionary does not fit, unless `force`.
    """
    for source in sources:
        if isinstance(source, Directions):
            yield source.scale
        if isinstance(source, Dictionary):
            try:
                tried = try_dictionary(subject, source, corpus, window=window, force=force)
            except MissingLayersError as error:
                if not force:
                    raise
                yield f"Warning: {source.id} is not tried: {error}"
                continue
            if tried.left_out:
                yield (
                    f"{tried.left_out} of {tried.read} tokens are special or massive at {source.id.site}: the gate "
                    "leaves them out"
                )
            yield str(tried.gate)
            if warning := tried.sweep.warning:
                yield f"Warning: {warning}"


class Tried(NamedTuple):
    """What came of a dictionary on the corpus's vectors."""

    gate: Gate
    sweep: Sweep
    read: int
    """Tokens."""
    left_out: int
    """Tokens that are special or massive."""


def try_dictionary(subject: Subject, source: Dictionary, corpus: Corpus, *, window: int, force: bool) -> Tried:
    """Try a dictionary on the corpus's vectors at its sites and at nearby ones.

    Raises NeuronautError where it does not fit, unless `force`.
    """
    tokens, own = sample(subject, corpus, window=window), (*source.reads, *source.writes)
    several = len(source.reads) > 1 or len(source.writes) > 1 or source.companions is not None
    near = _other_orders(subject, source) if several else [end for site in own for end in _neighbours(subject, site)]
    sites = list(dict.fromkeys((*own, *near)))
    strict = subject.with_convention(replace(subject.convention, norm_limits=norm_limits(subject, sites, tokens)))
    if source.targets:
        vectors = read_together(strict, sites, tokens, at=source.reads)
    else:
        vectors = {other: read_counted(strict, other, tokens) for other in sites}
    encoded = _encoded_at(strict, source, sites, tokens) if source.looks_back else None
    inputs = join_vectors(vectors, source.reads) if encoded is None else encoded[source.id.site]
    targets = join_vectors(vectors, source.writes) if source.targets or source.looks_back else None
    others = rebuild_by_others(source, lambda site: read_together(strict, [site], tokens, at=source.reads)[site])
    suspect = partial(_suspect_script, subject, tokens)
    gate = check(source, inputs, targets=targets, others=others, force=force, suspect=suspect)
    if source.companions is not None:
        swept = Sweep(source.id.site, {source.id.site: gate.fvu})
    else:
        swept = sweep_orders(source, vectors) if several else sweep(source, vectors, inputs=encoded)
    read = int((tokens >= 0).sum())
    return Tried(gate, swept, read, read - len(inputs))


def _encoded_at(
    subject: Subject, source: Dictionary, sites: Sequence[str], tokens: NDArray[np.int64]
) -> dict[str, Tensor]:
    """What a temporal dictionary would encode at each site, (vector, d_site)."""
    moved = (replace(source, id=replace(source.id, site=site)) for site in sites)
    return {one.id.site: read_inputs(subject, one, tokens) for one in moved}


def _other_orders(subject: Subject, source: Dictionary) -> list[str]:
    """The sites that a dictionary of several is tried on beside its own; none of one layer of a transcoder."""
    tried = [] if source.companions is not None else orders(source).values()
    return [site for ends in tried for sites in ends for site in sites if site in subject.sites]


def _suspect_script(subject: Subject, tokens: NDArray[np.int64]) -> str | None:
    # Tokens one by one would be halves of letters.
    return foreign_script((str(subject.tokenizer.decode(row[row >= 0])) for row in tokens), subject.vocabulary)


def sample(subject: Subject, corpus: Corpus, *, window: int, tokens: int = GATE_TOKENS) -> NDArray[np.int64]:
    """Take windows from the corpus's first documents, a few of each, shape (window, position), padded at the end."""
    rows: list[NDArray[np.int64]] = []
    for _, document in corpus:
        rows += [*cut(subject.encode(document.text[: 16 * window * _GATE_WINDOWS]), window)[:_GATE_WINDOWS]]
        if len(rows) * window >= tokens and sum(int((row >= 0).sum()) for row in rows) >= tokens:
            break
    return np.array(rows, np.int64)


REFERENCE_WINDOW = 64
"""Tokens in a row of reference text, where the model has room for them."""
REFERENCE_TOKENS = 4000
"""Tokens of reference text, where nobody says how many."""


def reference_rows(subject: Subject, corpus: Corpus, *, tokens: int = REFERENCE_TOKENS) -> Batch:
    """The beginning of a corpus in rows of REFERENCE_WINDOW tokens, BOS in front where the subject has one."""
    window = min(REFERENCE_WINDOW, subject.room)
    return _as_rows(subject, sample(subject, corpus, window=window, tokens=tokens))


def stored_reference(store: Store, subject: Subject, *, tokens: int = REFERENCE_TOKENS) -> Batch:
    """As `reference_rows`, from the windows that the store holds as a sample of the corpus of the harvest."""
    if split_random(subject.name)[0] == "demo":
        return reference_rows(subject, Corpus.load("stdlib"), tokens=tokens)
    window = min(REFERENCE_WINDOW, subject.room)
    return _as_rows(subject, store.pool(subject.name)["train"][: max(1, tokens // window), :window])


def _as_rows(subject: Subject, windows: NDArray[np.int64]) -> Batch:
    """Windows (row, position), padding below 0, as rows for a forward pass."""
    return Batch.of(subject, [[*subject.bos_prefix, *row[row >= 0].tolist(), *subject.eos_suffix] for row in windows])


_BESIDE = {"mlp_in": ("resid_mid", "resid_pre"), "mlp_out": ("attn_out", "resid_post"), "attn_out": ("mlp_out",)}
"""Families of sites whose vectors a dictionary may be taken to be of by mistake."""


def _neighbours(subject: Subject, site: str) -> list[str]:
    """Find nearby sites whose vectors differ from the site's own: in the next layers, and along the residual stream."""
    family, _, layer = site.partition(".")
    if not layer:
        return []
    near = [f"{family}.{int(layer) + step}" for step in (-1, 1)]
    if family.startswith("resid"):
        near += [f"{kind}.{layer}" for kind in ("resid_pre", "resid_mid", "resid_post")]
    near += [f"{kind}.{layer}" for kind in _BESIDE.get(family, ())]
    distinct = [site]
    for other in near:
        if other in subject.sites and not any(same_site(other, other_site) for other_site in distinct):
            distinct.append(other)
    return [other for other in distinct[1:] if subject.width(other) == subject.width(site)]


# What the store knows


def stored_subject(
    store: Store,
    model: str,
    load_options: LoadOptions,
    *,
    sources: Iterable[SourceId] = (),
    name: str | None = None,
    load: Loader = load_subject,
) -> Subject:
    """Open the subject that a model's features were harvested on, named as there; any other by itself, or as `name`.

    It reads text as the harvests of `sources` did, or as the model's latest one. `load` is what loads weights.
    """
    model = store.model(model)
    if model in store.models() or load_options.model is not None:
        name = model
    if load_options.model is None and (recorded := recorded_subject(store, model)) is not None:
        return recorded
    latest = _latest_harvest(store, model)
    if latest.get("kind") == FunctionSubject.unit_kind:
        return stored_function(store, latest, load_options.model)
    provenance = latest.get("provenance", {})
    path = load_options.model or provenance.get("paths", {}).get(model, model)
    folder = Path(split_random(path)[0])
    if load_options.model is None and folder.is_absolute() and not folder.exists():
        raise NeuronautError(f"{model} was harvested from {path}, which is gone; say with --model where it lies now")
    dtype = load_options.dtype or provenance.get("dtype")
    subject = load(path, LoadOptions(device=load_options.device, dtype=dtype), name=name)
    return as_harvested(subject, store, set(sources) or ([SourceId.parse(latest["source"])] if latest else ()))


def with_limits(subject: Subject, store: Store, sources: Iterable[SourceId]) -> Subject:
    """The subject with the norms above which the harvests of these sources left positions out."""
    limits = {site: limit for source in sources for site, limit in store.convention(source).norm_limits.items()}
    return subject.with_convention(replace(subject.convention, norm_limits=limits))


def _latest_harvest(store: Store, model: str) -> Mapping[str, Any]:
    """The row of the model's source that was harvested last; empty without any."""
    rows = [row for row in store.sources() if row["model"] == model and row["harvested"]]
    return max(rows, key=lambda row: row["harvested"], default={})


def stored_sources(
    store: Store, subject: Subject, features: Iterable[Feature], load_options: LoadOptions
) -> dict[SourceId, Source]:
    """Open the sources of some features where they were harvested from, or as `load_options` say.

    Raises NeuronautError where the weights of the model or of a dictionary are not those of the harvest.
    """
    rows = {row["source"]: row for row in store.sources()}
    return {id: _open_stored(store, rows[str(id)], subject, id, load_options) for id in {f.source for f in features}}


def _open_stored(
    store: Store, row: Mapping[str, Any], subject: Subject, id: SourceId, load_options: LoadOptions
) -> Source:
    if row["model_revision"] != subject.revision:
        raise NeuronautError(
            f"{id} was harvested on weights of revision {row['model_revision']}, but {id.model} here has "
            f"{subject.revision}; name the right model and dtype with --model and --dtype, or harvest again"
        )
    if (recorded := recorded_source(store, id)) is not None:
        return recorded
    harvested_from = row["provenance"].get("paths", {}).get(str(id))
    path = load_options.sae or harvested_from or built_in(id)
    if id.dictionary is None or path is None:
        return open_source(subject, id)
    source = (
        open_source(subject, id, path=str(path))
        if str(path).startswith(ALONG)
        else _load_named(subject, id, str(path), load_options)
    )
    if source.revision != row["revision"]:
        raise NeuronautError(
            f"{id} was harvested with a dictionary of revision {row['revision']}, but {path} has {source.revision}; "
            "name the right one with --sae (and --norm-scale), or harvest again"
        )
    return source
