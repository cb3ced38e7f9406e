"""Whether a site says that a feature is active even where the feature itself is left out."""

import torch
from pydantic import Field

from ....causal.probes import fit_probe, read_examples
from ....explainers.battery.places import Place
from ....subject.directions import checked_index
from ....subject.sources import require_one_site, require_vectorwise
from ...loop.experiments import Control, Design, Measured
from ...loop.feature_lab import FeatureLab
from ..base import InsideTool
from ..places import Drawn
from .effects import build_result
from .inputs import active_places, from_json, silent_places, to_json, windows


class ProbeArgs(Drawn, frozen=True):
    """Arguments of `probe_property`."""

    count: int = Field(80, ge=20, le=400, description="active places to use at most, and as many silent ones")


class ProbeProperty(InsideTool[ProbeArgs]):
    """Fits a linear probe for "the feature is active here" without the feature. At its own site, with the feature set
    to zero: how much of the property other directions carry. Half of the silent places hold a token on which it fires
    elsewhere. The headline is the probe's AUROC on places that it was not fitted on (0.5: the others know nothing, 1:
    they know it as well); probes of shuffled labels are the control; the probe with the feature is in `found`.
    """

    name = "probe_property"
    survey = True

    def design(self, args: ProbeArgs, lab: FeatureLab) -> Design:
        """Chooses active places and silent ones."""
        active = active_places(lab, args.count, seed=args.seed)
        near = silent_places(lab, len(active) // 2, seed=args.seed, tokens=lab.fires_on)
        silent = [*near, *silent_places(lab, len(active) - len(near), seed=args.seed)]
        question = f"Do other directions at {_site(lab)} carry what {lab.target} says?"
        plan = {"active": to_json(_distinct(active)), "silent": to_json(_distinct(silent)), "near_misses": len(near)}
        return Design(question, "effect", (), plan)

    def measure(self, design: Design, lab: FeatureLab) -> Measured:
        """Fits a probe with the feature set to zero, and one with it."""
        active, silent = (from_json(design.plan[name]) for name in ("active", "silent"))
        rows = [place.ids[: place.pivot + 1] for place in (*active, *silent)]
        labels, site = [True] * len(active) + [False] * len(silent), _site(lab)
        batch = windows(lab, rows)
        vectors = read_examples(lab.subject, batch, site=site)
        read = lab.source.id.site
        inputs = vectors if site == read else read_examples(lab.subject, batch, site=read)
        index = torch.tensor([checked_index(lab.source, lab.feature)], device=lab.subject.device)
        there = vectors.to(lab.subject.device)
        zeros = torch.zeros(len(rows), 1, device=there.device)
        without = lab.source.edit(there, index, zeros, inputs=inputs.to(there.device)).cpu()
        others, whole = (
            fit_probe(part, labels, site=site, positions="last", seed=lab.seed) for part in (without, vectors)
        )
        shuffled = torch.tensor(others.control.controls, dtype=torch.float64)
        low, high = shuffled.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        control = Control(f"{len(shuffled)} probes of shuffled labels", float(shuffled.mean()), low, high)
        return build_result(
            others.auroc,
            units="AUROC",
            normalised_by="the chance that an active place is ranked above a silent one",
            control=control,
            found={
                "with_the_feature": round(whole.auroc.value, 4),
                "accuracy": round(others.accuracy.value, 4),
                "base_rate": round(others.base_rate, 4),
                "trained": others.trained,
                "active": len(active),
                "silent": len(silent),
                "near_misses": design.plan["near_misses"],
                "percentile": others.control.percentile,
                "p": round(others.control.p, 4),
            },
        )


def _site(lab: FeatureLab) -> str:
    require_vectorwise(lab.source, "a linear probe")
    return require_one_site(lab.source, "a linear probe")


def _distinct(places: list[Place]) -> list[Place]:
    """Each text up to its place once: a probe must not be tested on what it was fitted on."""
    return [*{place.ids[: place.pivot + 1]: place for place in places}.values()]
