"""Makes experiments of calls of tools: inputs chosen, predictions made, plans that test nothing refused.

An experiment is refused where no two live rivals forecast any item differently, since then no outcome could tell
them apart; and so are the last ones of a plan after which fewer than QUOTA of the experiments were ones for which the
leader predicts silence, since an explanation that was only ever asked where it says yes was never in danger. The other
calls of a plan are run.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any, NamedTuple

from pydantic import ValidationError

from ...data.store.journal_values import Experiment, Prediction
from ...subject.errors import NeuronautError
from .experiments import AnyTool, Design, design_to_json
from .hypotheses import Call, Hypothesis
from .judging import differing_items, observed_base_rate
from .levels import MIDDLE, asks_for_silence, forecast
from .rejections import RejectedError, Rejection
from .run import InvestigationRun

QUOTA = 0.4
"""Least share of the experiments for which the leader predicts silence on at least half of the items."""


class Plan(NamedTuple):
    """What comes of the calls of one decision."""

    experiments: list[Experiment]
    refused: list[tuple[Call | None, Rejection]]
    """Each call that is not run, and why; None for all that are left."""


class Planner:
    """Plans the calls of one decision."""

    def __init__(self, run: InvestigationRun, rivals: Mapping[str, Hypothesis], *, role: str, round: int) -> None:
        """`rivals` are the live hypotheses, the leader first."""
        self._lab, self._tools, self._rivals = run.lab, run.tools, rivals
        _, self._experiments, self._observations = run.rival_state()
        self._role, self._round, self._revision = role, round, run.revision

    def plan(self, calls: Sequence[Call]) -> Plan:
        """Makes the experiments of these calls, in order."""
        self._lab.rivals = self._rivals
        planned: list[tuple[Call, Experiment]] = []
        refused: list[tuple[Call | None, Rejection]] = []
        for call in calls:
            try:
                planned.append((call, self._experiment(call)))
            except RejectedError as error:
                refused.append((call, error.rejection))
        kept = self._within_quota([experiment for _, experiment in planned])
        if len(kept) < len(planned):
            why = self._too_little_silence([experiment for _, experiment in planned])
            left_out = [call for call, experiment in planned if experiment not in kept]
            of_calls = [(c, replace(why, reason=f"{c.tool}: {why.reason}", tool=c.tool)) for c in left_out]
            refused += of_calls if kept else [(None, why)]
        first = len(self._experiments) + 1
        return Plan([replace(e, name=f"o{number}") for number, e in enumerate(kept, start=first)], refused)

    def _experiment(self, call: Call) -> Experiment:
        tool = self._tools.get(call.tool)
        if tool is None:
            there = ", ".join(self._tools)
            raise RejectedError("bad_call", f"there is no tool {call.tool!r}; there are {there}", tool=call.tool)
        try:
            args = tool.args.model_validate(call.args)
            design = tool.design(args, self._lab)
        except ValidationError as error:
            raise RejectedError("bad_call", _first_fault(error)).of_call(call.tool) from None
        except RejectedError as error:
            raise error.of_call(call.tool) from None
        except NeuronautError as error:
            raise RejectedError("bad_call", str(error)).of_call(call.tool) from None
        base, predictions, reference = (), (), None
        if not tool.survey:
            base = observed_base_rate(self._experiments, self._observations, design.readout)
            predictions = self._predictions(call, design)
            reference = next(iter(self._rivals), None)
            self._check_informative(call, design, predictions, base)
        plain, body = args.model_dump(mode="json"), design_to_json(design)
        key = self._key(tool, plain, body)
        if (same := next((e.name for e in self._experiments if e.key == key), None)) is not None:
            raise RejectedError(
                "repeated", f"{same} measured exactly this; another seed or other arguments are news"
            ).of_call(call.tool)
        return Experiment(
            name="",
            tool=call.tool,
            args=plain,
            purpose=call.purpose,
            survey=tool.survey,
            role=self._role,
            round=self._round,
            key=key,
            design=body,
            base=base,
            reference=reference,
            predictions=predictions,
        )

    def _predictions(self, call: Call, design: Design) -> tuple[Prediction, ...]:
        if unknown := sorted(set(call.expects) - set(self._rivals)):
            message = f"expects names {unknown[0]}; live are {', '.join(self._rivals)}"
            raise RejectedError("bad_call", message).of_call(call.tool)
        predictions = []
        for name, hypothesis in self._rivals.items():
            if hypothesis.kind == "described" and design.readout == "response":
                # A challenger sees the leader alone, so it speaks for no other.
                if name not in call.expects and (self._role == "proposer" or name == next(iter(self._rivals))):
                    raise RejectedError(
                        "bad_call", f"{name} has words only, so say in `expects` what it predicts here"
                    ).of_call(call.tool)
                value = MIDDLE[call.expects[name]] if name in call.expects else None
                expected: tuple[float | None, ...] = (value,) * len(design.items)
            else:
                expected = self._lab.expect(hypothesis, design)
            predictions.append(Prediction(name, expected))
        return tuple(predictions)

    def _check_informative(
        self, call: Call, design: Design, predictions: Sequence[Prediction], base: Sequence[float]
    ) -> None:
        if not design.items:
            raise RejectedError("bad_call", "there is nothing to measure with these arguments; choose others").of_call(
                call.tool
            )
        if design.readout == "effect" and self._lab.kind == "feature":
            # About single claims, not about the rivals: somebody must claim something.
            if all(value is None for p in predictions for value in p.expected):
                raise RejectedError(
                    "uninformative", "no rival says what the feature writes or reads; first propose one that does"
                ).of_call(call.tool)
            return
        forecasts = [forecast(prediction.expected, base) for prediction in predictions]
        if not any(differing_items(first, second).any() for first, second in combinations(forecasts, 2)):
            raise RejectedError(
                "uninformative",
                f"all rivals predict the same for all {len(design.items)} items, so nothing would be learned; choose "
                "other inputs",
            ).of_call(call.tool)

    def _within_quota(self, planned: Sequence[Experiment]) -> list[Experiment]:
        """The plan without the last experiments that are too many for so few of silence; surveys are free."""
        kept = list(planned)
        while others := [e for e in kept if not e.survey and not _asks_for_silence(e)]:
            every = [e for e in (*self._experiments, *kept) if not e.survey]
            if sum(map(_asks_for_silence, every)) >= QUOTA * len(every):
                break
            kept.remove(others[-1])
        return kept

    def _too_little_silence(self, planned: Sequence[Experiment]) -> Rejection:
        every = [e for e in (*self._experiments, *planned) if not e.survey]
        return Rejection(
            f"the leader would predict silence for only {sum(map(_asks_for_silence, every))} of {len(every)} "
            f"experiments, wanted at least {QUOTA:.0%}; ask more where it says that nothing happens",
            "silence_quota",
        )

    def _key(self, tool: AnyTool, args: Mapping[str, Any], design: Mapping[str, Any]) -> str:
        identity = [self._lab.target, self._revision, tool.name, tool.version, args, design]
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _asks_for_silence(experiment: Experiment) -> bool:
    return asks_for_silence(p.expected for p in experiment.predictions)


def _first_fault(error: ValidationError) -> str:
    """The first fault in one line."""
    first = error.errors(include_url=False)[0]
    path = ".".join(str(step) for step in first["loc"]) or "the arguments"
    return f"{path}: {first['msg'].removeprefix('Value error, ')}; got {str(first['input'])[:80]}"
