"""Files of recorded activations, each window of a feature as one `Recorded`: our own JSON lines, and four converted.

    ours         {"feature": "MODEL:SITE:INDEX", "tokens": [...], "activations": [...]}, if known document and revision
    OpenAI       a NeuronRecord: neuron_id, most_positive_activation_records, random_sample, random_sample_by_quantile
    Neuronpedia  an activation {modelId, layer, index, tokens, values}, or a feature's page with a list of `activations`
    SAEDashboard a batch for Neuronpedia {model_id, layer, features: [{feature_index, activations}]}
    delphi       safetensors FIRST_LAST: locations (row, position, feature - FIRST), activations, tokens (row, position)

All but the first need to be told the source; `{layer}` in it stands for the layer that a record names. delphi's
caches hold token ids, so they need the tokenizer, and far more windows than are of use: of each feature the strongest
are kept and a uniform sample of the others, besides a uniform sample of all rows, active or not.
"""

import gzip
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from ...subject.address import Feature, SourceId
from ...subject.errors import NeuronautError
from ..harvest.state import POOL
from ..splits import chance
from .lines import malformed, read
from .writing import clean

STRONGEST, SAMPLED = 64, 64
"""Windows kept of a feature of delphi's."""
BOS = frozenset({"<bos>", "<s>", "<|endoftext|>", "<|begin_of_text|>"})
"""Tokens that are context, no text, where they begin a window."""
_DELPHI = re.compile(r"(\d+)_(\d+)")


class Recorded(NamedTuple):
    """One window, with the activations of one feature."""

    source: SourceId
    feature_index: int | None
    """None for a window that is there because it was drawn without regard to any feature."""
    tokens: tuple[str, ...]
    activations: NDArray[np.float32]
    document: str | None
    revision: str | None


class Naming(NamedTuple):
    """What a user says of files that do not say it themselves."""

    source: str | None = None
    """The source that the indices are of; `{layer}` stands for the layer of a record."""
    tokens: Callable[[], Sequence[str]] | None = None
    """Reads the string of every token id."""

    def of(self, layer: object = "") -> SourceId:
        """The source of records of a layer."""
        if self.source is None:
            raise NeuronautError("which source it is of is not said here; name it with --source, as gpt2:mlp.5")
        return SourceId.parse(self.source.replace("{layer}", str(layer)))


def list_evidence(name: str) -> list[Path]:
    """List the file itself, or all files of a folder that may hold evidence."""
    path = Path(name).expanduser()
    if not path.exists():
        raise NeuronautError(f"there is no file or folder {path}; check the path")
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.rglob("*") if _form(file) in _READERS and file.name != "config.json")
    files = [file for file in files if file.parent.name == "activations"] or files
    if not files:
        raise NeuronautError(f"the folder {path} holds no evidence; wanted files ending in {', '.join(_READERS)}")
    return files


def read_evidence(path: Path, naming: Naming) -> Iterator[Recorded]:
    """Read the windows of a file; NeuronautError, with the line, where it cannot be read."""
    if (reader := _READERS.get(_form(path))) is None:
        raise NeuronautError(f"{path} is of no kind that holds evidence; wanted a file ending in {', '.join(_READERS)}")
    return reader(path, naming)


def _form(path: Path) -> str:
    return path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix


def _read_lines(path: Path, naming: Naming) -> Iterator[Recorded]:
    for number, row in read(path):
        yield from _convert(path, number, row, naming)


def _read_object(path: Path, naming: Naming) -> Iterator[Recorded]:
    try:
        content = json.loads(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())
    except (ValueError, OSError, EOFError, RecursionError) as error:
        raise NeuronautError(f"{path} is not readable JSON ({error}); fetch it again") from None
    for row in content if isinstance(content, list) else [content]:
        yield from _convert(path, 1, row, naming)


def _convert(path: Path, number: int, row: object, naming: Naming) -> Iterator[Recorded]:
    """The windows of one record, of whichever kind it is."""
    try:
        if not isinstance(row, dict):
            raise NeuronautError(f"this is a {type(row).__name__}, wanted an object")
        convert = next((convert for keys, convert in _RECORDS if row.keys() >= keys), None)
        if convert is None:
            kinds = "; ".join(", ".join(sorted(keys)) for keys, _ in _RECORDS)
            raise NeuronautError(f"the keys are {', '.join(row) or 'none'}; wanted one of: {kinds}")
        yield from convert(row, naming)
    except (NeuronautError, ValueError, TypeError, KeyError) as error:
        raise malformed(path, number, error) from None


def _own(row: Mapping[str, Any], naming: Naming) -> Iterator[Recorded]:
    named = row["feature"]
    if isinstance(named, str) and not named.isdecimal():
        feature = Feature.parse(named)
        if feature.negative:
            raise NeuronautError(f"{named} is a negative tail; give the feature, whose activations may be negative")
        source, index = feature.source, feature.index
    else:
        source, index = naming.of(), _index(named)
    document, revision = (None if row.get(key) is None else str(row[key]) for key in ("document", "revision"))
    yield _window(source, index, row["tokens"], row["activations"], document=document, revision=revision)


def _neuron_record(row: Mapping[str, Any], naming: Naming) -> Iterator[Recorded]:
    id = row["neuron_id"]
    source, index = naming.of(id["layer_index"]), _index(id["neuron_index"])
    quantiles = [record for bucket in row.get("random_sample_by_quantile") or [] for record in bucket]
    records = [*row["most_positive_activation_records"], *(row.get("random_sample") or []), *quantiles]
    for record in records:
        yield _window(source, index, record["tokens"], record["activations"])


def _neuronpedia(row: Mapping[str, Any], naming: Naming) -> Iterator[Recorded]:
    source = naming.of(str(row["layer"]).partition("-")[0])
    for record in row.get("activations", [row]):
        yield _window(source, _index(row["index"]), record["tokens"], record["values"])


def _dashboard(row: Mapping[str, Any], naming: Naming) -> Iterator[Recorded]:
    source = naming.of(row["layer"])
    for feature in row["features"]:
        for record in feature["activations"]:
            yield _window(source, _index(feature["feature_index"]), record["tokens"], record["values"])


_RECORDS: Sequence[tuple[frozenset[str], Callable[[Mapping[str, Any], Naming], Iterator[Recorded]]]] = (
    (frozenset({"feature", "tokens", "activations"}), _own),
    (frozenset({"neuron_id", "most_positive_activation_records"}), _neuron_record),
    (frozenset({"modelId", "layer", "index", "tokens", "values"}), _neuronpedia),
    (frozenset({"modelId", "layer", "index", "activations"}), _neuronpedia),
    (frozenset({"model_id", "layer", "features"}), _dashboard),
)
"""The keys of a record, and what makes windows of it."""


def _index(value: object) -> int:
    if isinstance(value, bool) or not re.fullmatch("[0-9]{1,9}", str(value)):
        raise NeuronautError(f"the feature is {value!r}, wanted MODEL:SITE:INDEX or, with --source, a number")
    return int(str(value))


def _window(
    source: SourceId,
    index: int | None,
    tokens: Sequence[str],
    activations: Sequence[float],
    *,
    document: str | None = None,
    revision: str | None = None,
) -> Recorded:
    """A window without the BOS at its beginning; NeuronautError where its two sides do not fit."""
    if not isinstance(tokens, list | tuple) or not all(isinstance(token, str) for token in tokens):
        raise NeuronautError("tokens is no list of strings")
    values = np.asarray(activations, np.float32)
    if values.shape != (len(tokens),):
        raise NeuronautError(f"{len(tokens)} tokens came with activations of shape {values.shape}; wanted one a token")
    with np.errstate(over="ignore"):
        if not np.isfinite(values.astype(np.float16)).all():
            raise NeuronautError("an activation is no number, or too large to be kept (above 65504)")
    first = int(bool(tokens) and tokens[0] in BOS)
    if len(tokens) == first:
        raise NeuronautError("a window has no tokens")
    strings = tuple(clean(token) or "" for token in tokens[first:])
    return Recorded(source, index, strings, values[first:], document=document, revision=revision)


def _read_delphi(path: Path, naming: Naming) -> Iterator[Recorded]:
    name = _DELPHI.fullmatch(path.stem)
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise NeuronautError(f"{path} is not readable ({error}); fetch it again") from None
    if name is None or not tensors.keys() >= {"locations", "activations", "tokens"}:
        raise NeuronautError(
            f"{path} is no cache of delphi's with tokens: it holds {', '.join(sorted(tensors))}; wanted FIRST_LAST."
            "safetensors with locations, activations and tokens"
        )
    if naming.tokens is None:
        raise NeuronautError(f"{path} holds token ids; name their tokenizer with --tokenizer FOLDER, or its id")
    strings, source, tokens = naming.tokens(), naming.of(), tensors["tokens"].astype(np.int64)
    if int(tokens.max(initial=0)) >= len(strings):
        raise NeuronautError(f"{path} holds token id {tokens.max()}, and the tokenizer has {len(strings)} tokens")
    locations, values = tensors["locations"].astype(np.int64), tensors["activations"].astype(np.float32)
    if locations.shape != (len(values), 3) or (locations[:, :2] >= tokens.shape).any():
        raise NeuronautError(f"{path} names places beyond its {tokens.shape[0]} rows of {tokens.shape[1]} tokens")
    texts = [[strings[int(id)] for id in row] for row in tokens]
    drawn = chance(np.arange(len(tokens)), seed=0).argsort()[:POOL]
    for row in drawn.tolist():
        yield _window(source, None, texts[row], [0.0] * tokens.shape[1])
    order = np.lexsort((locations[:, 0], locations[:, 2]))
    features, starts = np.unique(locations[order, 2], return_index=True)
    for feature, part in zip(features.tolist(), np.split(order, starts[1:]), strict=True):
        rows, place = np.unique(locations[part, 0], return_inverse=True)
        dense = np.zeros((len(rows), tokens.shape[1]), np.float32)
        dense[place, locations[part, 1]] = values[part]
        strongest = (-dense.max(axis=1)).argsort(kind="stable")[:STRONGEST]
        sampled = chance(rows, seed=1).argsort()[:SAMPLED]
        for kept in np.union1d(np.union1d(strongest, sampled), np.flatnonzero(np.isin(rows, drawn))).tolist():
            yield _window(source, feature + int(name[1]), texts[rows[kept]], dense[kept].tolist())


_READERS: Mapping[str, Callable[[Path, Naming], Iterator[Recorded]]] = {
    ".jsonl": _read_lines,
    ".json": _read_object,
    ".safetensors": _read_delphi,
}
"""How files are read, by the end of their names before a `.gz`."""
