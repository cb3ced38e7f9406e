"""Makes scorers by name, as they stand after `-s`: `detection`, or `simulation:json` where there are variants."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Self

from ..data.store.search import Embedder
from ..llm.prompt import Prompt
from ..llm.types import LLM
from ..subject.address import Feature, SourceId
from ..subject.errors import NeuronautError, UnknownNameError
from ..subject.model import Subject
from ..subject.sources import Source
from .calibration import AdmittedScorer, Calibrated
from .controls import ControlMode, Controls
from .detection import Detection
from .embedding import Embedding
from .fuzzing import Fuzzing
from .intruder import Intruder
from .llm_simulation import LLMSimulator
from .output import OutputScorer
from .scorer import Scorer
from .simulation import RuleSimulator
from .simulation_json import JsonBackend
from .simulation_probe import ProbeBackend


@dataclass(frozen=True, slots=True)
class ScorerOptions:
    """Everything that scorers are made from.

    >>> make_scorer("embedding", ScorerOptions(controls="none")).settings["controls"]
    'none'
    """

    llm: LLM | None = None
    """The judge; None where only code judges."""
    subject: Subject | None = None
    """The model under study, which `output` steers."""
    sources: Mapping[SourceId, Source] = field(default_factory=dict)
    """Where `output` finds the features that it steers."""
    prompts: Mapping[str, str] = field(default_factory=dict)
    """Text of the user's own prompts, by name; the package's are used for the rest."""
    controls: ControlMode = "sample"
    """For which features the empty and another feature's explanation are judged as well."""
    first: Feature | None = None
    """The first feature of a run, which is in the sample."""
    pairs: int = 10
    """Pairs of active and silent excerpts that detection and fuzzing judge."""
    calibrated: bool = True
    """Whether a language model must pass on built-in units (calibration.py) before it judges."""
    embedder: str | None = None
    """Name or folder of the embedding model of `embedding`."""

    @property
    def judged_controls(self) -> Controls:
        """The controls that judges are asked for."""
        return Controls(self.controls, self.first)

    def prompt(self, name: str) -> Prompt | None:
        """The user's own prompt of this name; None for the package's."""
        return Prompt(name, self.prompts[name]) if name in self.prompts else None

    def for_choosing(self) -> Self:
        """Options of a scorer that chooses between explanations: no controls, and more pairs."""
        return replace(self, controls="none", pairs=20)

    def require_llm(self, scorer: str) -> LLM:
        """Return the language model; raises NeuronautError where none is named."""
        if self.llm is None:
            raise NeuronautError(
                f"-s {scorer} asks a language model; name one with -m, for example -m openai:gpt-4o-mini"
            )
        return self.llm


def _make_simulation(variant: str | None, options: ScorerOptions) -> Scorer:
    if variant == "rule" or options.llm is None and variant is None:
        return RuleSimulator()
    llm = options.require_llm("simulation")
    if variant == "probe" or variant is None and llm.can_probe:
        if not llm.can_probe:
            raise NeuronautError(
                "-s simulation:probe reads probabilities of the prompt, which this model does not give; "
                "use -m hf:PATH, a vLLM server with --tokenizer, or -s simulation:json"
            )
        return LLMSimulator(
            ProbeBackend(llm.tokenizer, options.prompt("simulate_all")), controls=options.judged_controls
        )
    backend = JsonBackend(options.prompt("simulate_json"), logprobs=variant == "logprobs")
    return LLMSimulator(backend, controls=options.judged_controls)


def _pair_judge_maker(scorer: type[Detection | Fuzzing]) -> Callable[[str | None, ScorerOptions], Scorer]:
    """Return the maker of a scorer of paired excerpts."""

    def make(variant: str | None, options: ScorerOptions) -> Scorer:
        options.require_llm(scorer.name)
        return scorer(
            prompt=options.prompt(scorer.name),
            count=options.pairs,
            logprobs=variant == "logprobs",
            controls=options.judged_controls,
        )

    return make


def _make_intruder(_: str | None, options: ScorerOptions) -> Scorer:
    options.require_llm("intruder")
    return Intruder(prompt=options.prompt("intruder"), controls=options.judged_controls)


def _make_rule(_: str | None, options: ScorerOptions) -> Scorer:  # noqa: ARG001
    return RuleSimulator(name="rule")


def _make_embedding(_: str | None, options: ScorerOptions) -> Scorer:
    # They cost nothing: code judges.
    controls = Controls("none" if options.controls == "none" else "all")
    return Embedding(Embedder(options.embedder) if options.embedder else Embedder(), controls=controls)


def _make_output(_: str | None, options: ScorerOptions) -> Scorer:
    options.require_llm("output")
    if options.subject is None:
        raise NeuronautError("the scorer output steers the subject, and none was given; pass subject=")
    return OutputScorer(
        options.subject,
        options.sources,
        tokens=options.prompt("output_tokens"),
        continuations=options.prompt("output_text"),
        controls=options.judged_controls,
    )


class _Maker(NamedTuple):
    make: Callable[[str | None, ScorerOptions], Scorer]
    variants: tuple[str, ...] = ()
    """The words that may stand after the name and a colon."""


SCORERS: Mapping[str, _Maker] = {
    "simulation": _Maker(_make_simulation, ("rule", "json", "logprobs", "probe")),
    "rule": _Maker(_make_rule),
    "detection": _Maker(_pair_judge_maker(Detection), ("logprobs",)),
    "fuzzing": _Maker(_pair_judge_maker(Fuzzing), ("logprobs",)),
    "intruder": _Maker(_make_intruder),
    "embedding": _Maker(_make_embedding),
    "output": _Maker(_make_output),
}


CODE_ONLY = ScorerOptions()
"""No language model judges."""


def make_scorer(name: str, options: ScorerOptions = CODE_ONLY) -> Scorer:
    """Make the scorer of a name, such as `detection` or `simulation:json`.

    Raises UnknownNameError for any other name, NeuronautError where the options lack what the scorer needs.

    >>> make_scorer("simulation").settings
    {'by': 'rule'}
    """
    base, _, variant = name.partition(":")
    if base not in SCORERS or variant and variant not in SCORERS[base].variants:
        names = [f"{n}[:{'|'.join(maker.variants)}]" if maker.variants else n for n, maker in SCORERS.items()]
        raise UnknownNameError(f"-s {name}: there is none of this name; there are {', '.join(names)}")
    return SCORERS[base].make(variant or None, options)


def make_scorers(names: str, options: ScorerOptions) -> list[Scorer]:
    """Make the scorers of a list of names with commas between.

    With a language model a scorer of the rules that it wrote beside its texts is added. It measures minimal pairs on
    the subject only where a simulation is asked for.
    """
    wanted = [name.strip() for name in dict.fromkeys(names.split(","))]
    scorers = [make_scorer(name, options) for name in wanted]
    if options.llm is not None and not any(isinstance(scorer, RuleSimulator) for scorer in scorers):
        simulated = any(name.partition(":")[0] == "simulation" for name in wanted)
        scorers.append(RuleSimulator(name="rule", pairs=simulated))
    if options.calibrated:
        return scorers
    return [AdmittedScorer(scorer) if isinstance(scorer, Calibrated) else scorer for scorer in scorers]
