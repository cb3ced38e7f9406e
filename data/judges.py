"""Who turned a description into predictions, and how: parts of a score's identity."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import NamedTuple


class Judge(NamedTuple):
    """Who judged, and how; both as in `Score`."""

    backend: str
    name: str


def name_judge(model: str, endpoint: str, prompt_hashes: Iterable[str]) -> str:
    """Name a language model as a judge: the same name only for the same model, endpoint and prompts."""
    first, *more = sorted(prompt_hashes)
    joint = hashlib.sha256(" ".join((first, *more)).encode()).hexdigest() if more else first
    return f"{model} @ {endpoint} # {joint[:12]}"


def identify_judge(provenance: Mapping[str, object]) -> Judge:
    """Read from the provenance of judgements who judged; a language model that it does not name has the name ""."""
    by, prompts = provenance.get("by"), provenance.get("prompt")
    if by == "rule":
        return Judge("rule", "code")
    if "embedder" in provenance:
        return Judge("", f"embedding {provenance['embedder']}")
    backend = str(by or "") or ("logprobs" if provenance.get("logprobs") else "")
    if "llm" not in provenance or not isinstance(prompts, Mapping):
        return Judge(backend, "")
    return Judge(backend, name_judge(str(provenance["llm"]), str(provenance.get("endpoint", "")), prompts.values()))
