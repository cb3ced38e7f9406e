"""Makes explainers by name, as they stand after `-e`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ..llm.prompt import Prompt
from ..rules.choose import Size
from ..subject.errors import UnknownNameError
from ..subject.model import Subject
from .combined import Combined
from .contrastive import Contrastive
from .explainer import Explainer
from .highlight import Highlight
from .oneshot import Oneshot
from .output import Output
from .rule import RuleExplainer


@dataclass(frozen=True, slots=True)
class ExplainerOptions:
    """Options that explainers take; all but the last are of those that ask a language model.

    >>> make_explainer("highlight", subject, ExplainerOptions(temperature=0.7, draw=1)).settings["draw"]
    1
    """

    prompts: Mapping[str, str] = field(default_factory=dict)
    """Text of the user's own prompts, by name; the package's are used for the rest."""
    temperature: float | None = 0.0
    """The temperature of replies; None for models that take none."""
    draw: int = 0
    """Another number is another sample of the same question."""
    rule_size: Size = None
    """Clauses of a learned rule; None for the shortest that is as good as any."""

    def prompt(self, name: str) -> Prompt | None:
        """The user's own prompt of this name; None for the package's."""
        return Prompt(name, self.prompts[name]) if name in self.prompts else None


AS_SHIPPED = ExplainerOptions()
"""The package's prompts, at temperature 0."""


def _prompt_explainer_maker(
    explainer: type[Oneshot | Highlight | Contrastive],
) -> Callable[[Subject, ExplainerOptions], Explainer]:
    """Return the maker of an explainer that fills one prompt and needs nothing of the subject."""
    return lambda _, options: explainer(
        prompt=options.prompt(explainer.name),
        temperature=options.temperature,
        draw=options.draw,
        language=options.prompt("rule_language"),
    )


def _make_combined(subject: Subject, options: ExplainerOptions) -> Explainer:
    return Combined(
        subject,
        prompt=options.prompt("combined"),
        temperature=options.temperature,
        draw=options.draw,
        language=options.prompt("rule_language"),
    )


def _make_output(subject: Subject, options: ExplainerOptions) -> Explainer:
    return Output(subject, prompt=options.prompt("output"), temperature=options.temperature, draw=options.draw)


EXPLAINERS: Mapping[str, Callable[[Subject, ExplainerOptions], Explainer]] = {
    "rule": lambda subject, options: RuleExplainer(subject, rule_size=options.rule_size),
    "oneshot": _prompt_explainer_maker(Oneshot),
    "highlight": _prompt_explainer_maker(Highlight),
    "contrastive": _prompt_explainer_maker(Contrastive),
    "output": _make_output,
    "combined": _make_combined,
}


def make_base_explainer(name: str, subject: Subject, options: ExplainerOptions) -> Explainer:
    """Make the explainer of a name of `EXPLAINERS`; raises UnknownNameError for any other."""
    if name not in EXPLAINERS:
        raise UnknownNameError(
            f"-e {name}: there is none of this name; there are {', '.join(EXPLAINERS)}, guided, best-of-N:NAME and "
            "refine:NAME"
        )
    return EXPLAINERS[name](subject, options)
