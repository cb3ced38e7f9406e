"""Names who judged, from what a judgement says of where it comes from.

Scorer, backend and judge are parts of a score's identity: how the scorer asks, and whom.
"""

from collections.abc import Mapping
from typing import NamedTuple

CODE = "code"
"""The judge where nobody was asked."""


class Judge(NamedTuple):
    """How a scorer asked, and whom."""

    backend: str
    """"rule", "json", "logprobs", "probe"; "" where the scorer knows one way only."""
    name: str
    """"code", or "MODEL @ ENDPOINT # PROMPT HASH"; "" where it is not known."""


def name_judge(provenance: Mapping[str, object]) -> Judge:
    """Name the judge of judgements with this provenance.

    >>> name_judge({"by": "rule"})
    Judge(backend='rule', name='code')
    >>> name_judge({"llm": "m", "endpoint": "e", "prompt": {"detection": "1a2b"}, "logprobs": True})
    Judge(backend='logprobs', name='m @ e # 1a2b')
    """
    backend = str(provenance.get("by") or ("logprobs" if provenance.get("logprobs") else ""))
    if backend == "rule":
        return Judge(backend, CODE)
    if embedder := provenance.get("embedder"):
        return Judge(backend, str(embedder))
    if not (llm := provenance.get("llm")):
        return Judge(backend, "")
    prompts = provenance.get("prompt")
    hashes = ", ".join(map(str, prompts.values())) if isinstance(prompts, Mapping) else str(prompts or "")
    return Judge(backend, f"{llm} @ {provenance.get('endpoint') or 'in process'} # {hashes}")
