"""The whole distribution of labels' correlations as a figure: one panel per layer and one for the latents.

Each curve is an empirical distribution: the height at x is the share of features with a correlation of at
most x, so a curve further to the right is better. A dot marks the median. Colours are Okabe and Ito's,
and the curves differ in their dashes as well.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .measure import Labelled

CURVES = (
    ("correlation", "rule (the explanation)", "#0072B2", "-", 2.0),
    ("token_table", "token table", "#D55E00", "--", 1.6),
    ("token_rule", "best single-token rule", "#666666", ":", 1.6),
)
"""Score key, name, colour, dashes and width."""


def draw(groups: Mapping[str, Sequence[Labelled]], path: Path, *, model: str, examples: str = "top_random") -> None:
    """Write the figure to `path`, in the format of its suffix."""
    columns = min(3, len(groups))
    lines = -(-len(groups) // columns)
    figure = Figure(figsize=(4.1 * columns, 0.9 + 3.2 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for panel, (name, group) in zip(panels, groups.items(), strict=False):
        _panel(panel, name, group, examples)
    for panel in panels[len(groups) :]:
        panel.axis("off")
    handles = [
        Line2D([], [], color=colour, ls=dashes, lw=width, label=name) for _, name, colour, dashes, width in CURVES
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(CURVES), frameon=False)
    sets = {"top_random": "top and random windows", "quantile": "active windows", "counterfactual": "minimal pairs"}
    figure.suptitle(f"How well labels of {model} predict activations on held-out {sets[examples]}", fontsize=12)
    figure.savefig(path, dpi=160)


def _panel(panel: Axes, name: str, group: Sequence[Labelled], examples: str) -> None:
    for row, (key, _, colour, dashes, width) in enumerate(CURVES):
        values = np.sort([v for labelled in group if (v := labelled.scores.get(f"{examples} {key}")) is not None])
        if not len(values):
            continue
        share = np.arange(1, len(values) + 1) / len(values)
        middle = float(np.median(values))
        panel.step([-1, *values, 1], [0, *share, 1], where="post", color=colour, ls=dashes, lw=width)
        panel.plot(middle, 0.5, "o", color=colour, ms=6, mec="white", zorder=3)
        panel.text(0.04, 0.9 - 0.09 * row, f"median {middle:.2f}", color=colour, transform=panel.transAxes, fontsize=9)
    panel.axhline(0.5, color="#cccccc", lw=0.8, zorder=0)
    explained = sum(labelled.status == "explained" for labelled in group)
    panel.set_title(f"{name}: {explained} of {len(group)} features explained", fontsize=10)
    panel.set_xlim(-0.2, 1.02)
    panel.set_ylim(0, 1.02)
    panel.set_xlabel("correlation with the true activation", fontsize=9)
    panel.set_ylabel("share of features at or below", fontsize=9)
    panel.tick_params(labelbottom=True)
    panel.spines[["top", "right"]].set_visible(False)
