"""Roles: what each node of a circuit does, proven by what it attends to or writes and by what changing that does.

A role is a pattern, seen on the clean prompts, and an intervention on the very edges of this pattern with an effect
whose sign is fixed beforehand (landmarks.py names the edges). Only a node with both has it proven.

    role               pattern                                intervention and the effect it must have
    mover              end to a word, writes for it           the other word's values: the answer's lead goes with them
    writing against    end to a word, writes against it       the same, with the other sign
    writer             end to itself, writes the answer       the corrupted prompt's values there: the lead falls
    carrier            end to the changed word, writes little its corrupted values: the lead falls
    inhibition         end to the repeat                      edges cut: movers turn from the answer's word to the wrong
    induction          repeat to what followed its copy       edges cut: the lead falls, by way of the inhibition heads
    duplicate-token    repeat to its copy                     (or directly, where the repeat is the end)
    previous-token     what followed the copy to the copy     edges cut: the induction heads look there less
    position           end to places, whatever stands there   its output with the two first words exchanged, which
                                                              leaves the answer what it is: the lead falls, more than
                                                              with both words exchanged everywhere
    enriching (MLP)    writes differently at changed words    corrupted there alone: the lead falls
    writer (MLP)       writes the answer at the end           corrupted there alone: the lead falls

An attention pattern counts from SEEN on, from EVEN times an even look on, and above that of 95% of the heads outside
the circuit (but for `itself`, where many look); a direct write above those of 95% of these heads. An effect counts from
LEAST on, with an interval above zero, and above that of the same intervention at CONTROLS other nodes of its kind, of
the same layers where there are as many: p = 1 / (1 + CONTROLS). What acts by way of
another role goes by heads whose own role is proven; so roles are found from the end of the information's flow to its
beginning, and the algorithm that is told in words is a chain of proven links.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import get_args

import torch
from torch import Tensor

from ...subject.attention import prove
from ...subject.model import Subject
from ..logit_attribution import logit_attribution
from ..measures import mean
from ..runs import resumable
from ..work import Work, cost_of
from .landmarks import EdgeName, Landmarks
from .nodes import Node, nodes_of
from .role_runs import Patch, Prompts, Readout, RoleRuns, heads_of, layer_of, share_onto
from .role_values import Claim, Measure, Role, Roles, flow
from .tasks import Task

SEEN = 0.25
"""Share of attention from which on a head looks somewhere."""
EVEN = 1.5
"""The least attention, as a multiple of what a head gives there that looks everywhere alike."""
GLANCE = 0.1
"""Share of attention below which an edge is not intervened on."""
UNUSUAL = 0.95
"""The quantile of other heads that a pattern must reach."""
LEAST = 0.02
"""The smallest effect: a share of the behaviour, or of attention."""
CONTROLS = 19
"""Other nodes that an intervention is made at too."""
CONTROL_PAIRS = 4
"""Pairs that it is made on there, for less work."""
MOST = 32
"""Pairs that roles are measured on, at most."""
KEPT = 0.5
"""Share of the answer's lead that exchanging the first words must leave."""
AT_WORD = 0.5
"""Share of an MLP's change that lies at the changed words, for it to work there."""


def find_roles(
    subject: Subject, task: Task, circuit: Sequence[Node], *, at_once: int = 64, seed: int = 0, work: Work | None = None
) -> Roles:
    """Find the roles of a circuit's heads and MLPs on the task's pairs; nodes of other kinds have none.

    `seed` draws the other nodes and the bootstraps.

    >>> from neuronaut.causal.circuits.nodes import parse_nodes
    >>> roles = find_roles(subject, open_task(subject, "induction", rows=8), parse_nodes("head.3:1"))
    >>> [claim.role for claim in roles.proven(roles.nodes[0])]
    ['induction']
    """
    task = task if len(task) <= MOST else task.take(range(MOST))
    (work or Work()).begin(f"finds the roles of {len(circuit)} nodes", left=_expect(subject, task, len(circuit)))
    for layer in range(subject.n_layers):  # Proofs are done once for each subject, so they are not counted.
        prove(subject, layer)
    resumable(subject)
    passes: list[None] = []
    counting = subject.model.base_model.register_forward_pre_hook(lambda *_: passes.append(None))
    with torch.inference_mode(), counting:
        finder = _Finder(subject, task, circuit, at_once=at_once, seed=seed)
        claims = [claim for claim in finder.claims() if claim.status is not None]
    return Roles(
        nodes=tuple(circuit),
        claims=flow(claims, get_args(Role)),
        pairs=len(task),
        places=finder.landmarks.describe(subject),
        absent=finder.absent,
        forwards=len(passes),
    )


def _expect(subject: Subject, task: Task, nodes: int) -> float:
    """Tokens to run, roughly."""
    rows = (5 + nodes) * len(task) + 3 * CONTROLS * CONTROL_PAIRS
    return rows * cost_of(subject, task.pairs.clean.tokens.shape[1], logits=1)


Falls = Callable[[Sequence[Node], int], Tensor]
"""From nodes, and how many pairs at most, to how far something falls by each of them: (node, row)."""


class _Finder:
    """Finds the claims of one circuit, from the end of the flow to its beginning."""

    def __init__(self, subject: Subject, task: Task, circuit: Sequence[Node], *, at_once: int, seed: int) -> None:
        self._subject, self._circuit, self._seed = subject, tuple(circuit), seed
        pairs = task.pairs
        self.landmarks = Landmarks.of(pairs)
        self._runs = RoleRuns(subject, self.landmarks, at_once)
        self._heads = heads_of(circuit)
        self._mlps = [node for node in circuit if node.site.startswith("mlp_out.") and node.positions == "all"]
        self._of_kind = {"head": nodes_of(subject, ["head"]), "mlp_out": nodes_of(subject, ["mlp"])}
        self._outside = [head for head in self._of_kind["head"] if head not in self._heads]
        nothing = torch.zeros_like(self.landmarks.edges["itself"])
        self._answer = Readout("lead", (), nothing, nothing)
        self._corrupted = Prompts("corrupted", pairs.corrupted)
        clean, corrupted = (self._lead(prompts) for prompts in ("clean", self._corrupted))
        self._clean, self._span = clean.mean(), float((clean - corrupted).mean())
        self._writes = self._attribute()
        listed = self.landmarks.listed
        self._other = Prompts("mirrored", self.landmarks.mirrored()) if listed else self._corrupted
        self.absent: dict[Role, str] = {}

    def claims(self) -> Iterator[Claim]:
        """All that are worth a measurement, whether their proofs hold or not."""
        movers = list(self._movers())
        yield from movers
        inhibition = list(self._inhibition([claim for claim in movers if claim.word == "answer"]))
        yield from inhibition
        induction = list(self._at_repeat("induction", "induction", inhibition))
        yield from induction
        yield from self._at_repeat("duplicate-token", "duplicate", inhibition)
        yield from self._previous(induction)
        yield from self._position()
        yield from self._mlp_writers()
        yield from self._enriching()

    # Patterns

    def _lead(self, prompts: str | Prompts) -> Tensor:
        """The answer's logit less the wrong one's: (row,)."""
        return self._runs.lead(self._runs.plain(prompts).logits)

    def _attribute(self) -> Mapping[str, Tensor]:
        """By node, the share of the mean lead that it writes directly: (row,)."""
        pairs, layers = self.landmarks.pairs, range(self._subject.n_layers)
        split = [f"head.{layer}" for layer in layers]
        parts = logit_attribution(self._subject, pairs.clean, token=pairs.answers, against=pairs.wrong, split=split)
        shares = parts.values / parts.total.mean()
        named = dict(zip(parts.components, shares.unbind(1), strict=True))
        return {name: values for name, values in named.items() if name.startswith(("head.", "mlp_out."))}

    def _attention(self, head: Node, name: EdgeName, what: str) -> Measure:
        """How much a head looks along edges, against all heads of the subject."""
        edges = self.landmarks.edges[name]
        everyone = share_onto(self._runs.plain().patterns, edges).mean(-1)
        others = [float(everyone[layer_of(other), other.unit or 0]) for other in self._outside]
        unusual = 0.0 if name == "itself" else _quantile(others)
        even = edges / torch.arange(1, edges.shape[-1] + 1)[:, None]
        least = EVEN * float(share_onto(even, edges).mean())
        return self._measure(what, share_onto(self._runs.pattern_of(head), edges), max(SEEN, unusual, least))

    def _write(self, node: Node, sign: int) -> Measure:
        """What a node writes for the answer (1) or against it (-1), against the other heads."""
        bar = _quantile([abs(float(self._writes[str(other)].mean())) for other in self._outside])
        what = "writes the answer" if sign > 0 else "writes against the answer"
        return self._measure(what, sign * self._writes[str(node)], bar)

    def _measure(self, what: str, values: Tensor, bar: float) -> Measure:
        found = mean(values, seed=self._seed)
        return Measure(what, found.value, found.interval, found.n, bar)

    # Interventions

    def _effects(
        self, what: str, signed: Sequence[tuple[Node, int]], falls: Falls, *, last: int | None = None
    ) -> list[Measure]:
        """How far something falls (sign 1) or rises (-1) by each node, against others before the layer `last`."""
        nodes = [node for node, _ in signed]
        moved = [
            self._measure(what, sign * fall, LEAST) for (_, sign), fall in zip(signed, falls(nodes, MOST), strict=True)
        ]
        others = self._draw_others(nodes, last) if any(measure.holds for measure in moved) else []
        if not others:
            return moved
        control = falls(others, CONTROL_PAIRS).mean(1)
        return [
            replace(measure, bar=max(LEAST, float((sign * control).max())), others=len(others))
            for (_, sign), measure in zip(signed, moved, strict=True)
        ]

    def _falls(
        self,
        nodes: Sequence[Node],
        count: int,
        *,
        patch: Callable[[Node], Patch],
        readout: Readout,
        through: Sequence[Node] = (),
    ) -> Tensor:
        """How far the readout falls by each node's patch, or by what it makes of the nodes `through`: (node, row)."""
        count = min(count, len(self.landmarks.pairs))
        runs: Sequence[Sequence[Patch]] = [[patch(node)] for node in nodes]
        if through:
            _, runs = self._runs.measure(runs, self._answer, count=count, keep=through)
        values, _ = self._runs.measure(runs, readout, count=count)
        return (self._runs.unedited(readout)[:count] - values) / (1.0 if readout.heads else self._span)

    def _swap(self, edges: Tensor, prompts: Prompts) -> Falls:
        """Of the lead, where heads' edges carry the values of other prompts."""
        return partial(self._falls, patch=lambda head: self._runs.swap(head, edges, prompts), readout=self._answer)

    def _replace(self, places: Tensor, prompts: Prompts) -> Falls:
        """Of the lead, where nodes put out, at places, what they do on other prompts."""

        def patch(node: Node) -> Patch:
            clean, other = self._runs.output(node), self._runs.output(node, prompts)
            return Patch(node, torch.where(places[..., None].to(clean.device), other, clean))

        return partial(self._falls, patch=patch, readout=self._answer)

    def _draw_others(self, nodes: Sequence[Node], last: int | None) -> list[Node]:
        """Other nodes of the kind, before the last layer that sees them, of the same layers first."""
        kind, layers = nodes[0].kind, {layer_of(node) for node in nodes}
        others = [node for node in self._of_kind[kind] if node not in self._circuit]
        others = [node for node in others if last is None or layer_of(node) < last]
        random.Random(f"roles: {self._seed}").shuffle(others)
        return sorted(others, key=lambda node: layer_of(node) not in layers)[:CONTROLS]

    def _glances(self, name: EdgeName, heads: Sequence[Node]) -> list[Node]:
        """The heads that look along edges at all."""
        edges = self.landmarks.edges[name]
        return [head for head in heads if float(share_onto(self._runs.pattern_of(head), edges).mean()) >= GLANCE]

    # Roles

    def _movers(self) -> Iterator[Claim]:
        """Movers, heads that write against, writers and carriers: what heads read at the end and write there."""
        words: tuple[EdgeName, ...] = ("answer", "wrong") if self.landmarks.listed else ("source",)
        for word in (*words, "itself"):
            heads = self._glances(word, self._heads) if self.landmarks.has(word) else []
            if not heads:
                continue
            signs = [1 if float(self._writes[str(head)].mean()) >= 0 else -1 for head in heads]
            edges = self.landmarks.edges[word]
            prompts = self._corrupted if word == "itself" else self._other
            what = f"with {'its corrupted' if prompts is self._corrupted else 'the other word’s'} values the lead "
            told = [what + ("falls" if sign > 0 else "rises") for sign in signs]
            effects = self._effects(what, list(zip(heads, signs, strict=True)), self._swap(edges, prompts))
            for head, sign, text, effect in zip(heads, signs, told, effects, strict=True):
                yield self._name_mover(head, word, sign, replace(effect, what=text))

    def _name_mover(self, head: Node, word: EdgeName, sign: int, effect: Measure) -> Claim:
        looks = self._attention(head, word, f"attends to {_NAMES[word]}")
        writes = self._write(head, sign)
        if word == "source" and sign > 0 and not writes.holds:
            return Claim(head, "carrier", word, (looks,), effect)
        towards = sign > 0 if word != "wrong" else sign < 0
        role: Role = "writing against" if not towards else "writer" if word == "itself" else "mover"
        return Claim(head, role, word, (looks, writes), effect)

    def _inhibition(self, movers: Sequence[Claim]) -> Iterator[Claim]:
        if not (self.landmarks.listed and self.landmarks.has("repeat")):
            self.absent["inhibition"] = "no wrong word is repeated"
            return
        readers = _proven(movers)
        edges = self.landmarks.edges
        gap = Readout("preference", readers, edges["answer"], edges["wrong"] & ~edges["repeat"])
        heads = self._glances("repeat", self._heads)
        yield from self._claims(
            "inhibition",
            heads,
            "repeat",
            "movers prefer the answer’s word less",
            gap,
            missing=None if readers else "no mover is proven that it could turn",
        )

    def _at_repeat(self, role: Role, name: EdgeName, inhibition: Sequence[Claim]) -> Iterator[Claim]:
        """Induction and duplicate-token heads, which act at the repeat."""
        if not self.landmarks.has(name):
            self.absent[role] = "no word is repeated" if name == "duplicate" else "nothing follows an earlier copy"
            return
        direct = self.landmarks.repeat_is_last
        readers = () if direct else _proven(inhibition)
        missing = None if direct or readers else "no inhibition head is proven that could read it"
        what = "the lead falls" if direct else "by way of the inhibition heads the lead falls"
        heads = self._glances(name, self._heads)
        yield from self._claims(role, heads, name, what, self._answer, through=readers, missing=missing)

    def _previous(self, induction: Sequence[Claim]) -> Iterator[Claim]:
        if not self.landmarks.has("previous"):
            self.absent["previous-token"] = "no word is repeated"
            return
        readers, edges = _proven(induction), self.landmarks.edges["induction"]
        match = Readout("match", readers, edges, torch.zeros_like(edges))
        yield from self._claims(
            "previous-token",
            self._glances("previous", self._heads),
            "previous",
            "induction heads attend there less",
            match,
            missing=None if readers else "no induction head is proven that could read it",
        )

    def _claims(
        self,
        role: Role,
        heads: Sequence[Node],
        name: EdgeName,
        what: str,
        readout: Readout,
        *,
        through: Sequence[Node] = (),
        missing: str | None,
    ) -> Iterator[Claim]:
        """Claims of heads whose edges are cut."""
        seen = {head: (self._attention(head, name, f"attends to {_NAMES[name]}"),) for head in heads}
        last = max((layer_of(node) for node in (*through, *readout.heads)), default=None)
        early = [head for head in heads if missing is None and (last is None or layer_of(head) < last)]
        edges = self.landmarks.edges[name]
        effects: Sequence[Measure] = ()
        if early:
            effects = self._effects(
                what,
                [(head, 1) for head in early],
                partial(self._falls, patch=lambda head: self._runs.cut(head, edges), readout=readout, through=through),
                last=last,
            )
        measured = dict(zip(early, effects, strict=True))
        for head in heads:
            why = None if head in measured else missing or "what it would act on lies before it"
            yield Claim(head, role, None, seen[head], effect=measured.get(head), reason=why)

    def _position(self) -> Iterator[Claim]:
        batch = self.landmarks.exchanged()
        exchanged = None if batch is None else Prompts("exchanged", batch)
        if exchanged is None or float(self._lead(exchanged).mean()) < KEPT * float(self._clean):
            self.absent["position"] = "exchanging the first words would change the answer, or they do not stand there"
            return
        end = self.landmarks.edges["itself"].any(-1)

        heads = {head: self._stays(head, exchanged) for head in self._heads}
        heads = {head: stays for head, stays in heads.items() if stays.value >= GLANCE}
        if not heads:
            return
        by_place, by_word = (self._replace(end, prompts) for prompts in (exchanged, self._other))

        def follow(nodes: Sequence[Node], count: int) -> Tensor:
            return by_place(nodes, count) - by_word(nodes, count).abs()

        what = "for an exchanged place the lead falls, more than for an exchanged word,"
        effects = self._effects(what, [(head, 1) for head in heads], follow)
        for (head, stays), effect in zip(heads.items(), effects, strict=True):
            yield Claim(head, "position", None, (stays,), effect)

    def _stays(self, head: Node, exchanged: Prompts) -> Measure:
        """How much a head looks at the same places whichever word stands there; 0 where it goes with a word."""
        marks, rows, last = self.landmarks, torch.arange(len(exchanged.batch)), exchanged.batch.last
        groups = [marks.answer & ~marks.repeats, marks.wrong & ~marks.repeats, marks.repeats & marks.wrong]
        now, then = (
            [(pattern[rows, last] * group).sum(1) for group in groups]
            for pattern in (self._runs.pattern_of(head), self._runs.pattern_of(head, exchanged))
        )
        stays, moves = (
            sum(torch.minimum(one, other) for one, other in zip(now, [then[at] for at in order], strict=True))
            for order in ((0, 1, 2), (1, 0, 2))
        )
        assert isinstance(stays, Tensor) and isinstance(moves, Tensor), "there are places"
        bound = stays if stays.mean() >= moves.mean() - GLANCE else torch.zeros_like(stays)
        even = sum(float((group.sum(1) / (last + 1)).mean()) for group in groups)
        return self._measure("attends to the same places", bound, max(SEEN, EVEN * even))

    # MLPs

    def _mlp_writers(self) -> Iterator[Claim]:
        end = self.landmarks.edges["itself"].any(-1)
        signed = [(node, 1 if float(self._writes[str(node)].mean()) >= 0 else -1) for node in self._mlps]
        signed = [(node, sign) for node, sign in signed if self._write(node, sign).holds]
        if not signed:
            return
        effects = self._effects("", signed, self._replace(end, self._corrupted))
        for (node, sign), effect in zip(signed, effects, strict=True):
            role: Role = "writer" if sign > 0 else "writing against"
            text = f"corrupted at the end the lead {'falls' if sign > 0 else 'rises'}"
            yield Claim(node, role, "itself", (self._write(node, sign),), replace(effect, what=text))

    def _enriching(self) -> Iterator[Claim]:
        places = self.landmarks.source & ~self.landmarks.edges["itself"].any(-1)
        if not self._mlps or not places.any():
            return
        what = "corrupted at the changed words the lead falls"
        signed = [(node, 1) for node in self._mlps]
        effects = self._effects(what, signed, self._replace(places, self._corrupted))
        for node, effect in zip(self._mlps, effects, strict=True):
            yield Claim(node, "enriching", None, (self._differs(node, places),), effect)

    def _differs(self, node: Node, places: Tensor) -> Measure:
        """The share of an MLP's change between the prompts that lies at places."""
        difference = self._runs.output(node) - self._runs.output(node, self._corrupted)
        change = difference.float().square().sum(-1).cpu() * self.landmarks.pairs.clean.real
        return self._measure("its change lies at the changed words", (change * places).sum(1) / change.sum(1), AT_WORD)


_NAMES: Mapping[EdgeName, str] = {
    "answer": "the answer’s word",
    "wrong": "the wrong word",
    "source": "the changed word",
    "itself": "the end itself",
    "repeat": "the repeat",
    "duplicate": "its earlier copy",
    "induction": "what followed its earlier copy",
    "previous": "the token before",
}


def _proven(claims: Sequence[Claim]) -> tuple[Node, ...]:
    return tuple(claim.node for claim in claims if claim.status == "proven")


def _quantile(values: Sequence[float]) -> float:
    """What a share of UNUSUAL does not reach; 0 of none."""
    return float(torch.tensor(values).quantile(UNUSUAL)) if values else 0.0
