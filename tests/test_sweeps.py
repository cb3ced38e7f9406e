"""Sweeps against one forward per cell done by hand, what they cost by the model's own count, grids and pictures."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from neuronaut.causal import pictures
from neuronaut.causal.edits import Edit
from neuronaut.causal.grids import Axis, Grid, each_position, sites_of
from neuronaut.causal.intervene import Materials
from neuronaut.causal.measures import Effect, Interval, Question, metric
from neuronaut.causal.prompts import Batch, Pairs
from neuronaut.causal.runs import compare, gather, patching, read_source_run
from neuronaut.causal.sweeps import Shift, Sweep, sweep, sweep_prompts
from neuronaut.subject.errors import NeuronautError
from neuronaut.subject.model import Subject
from tests.circuits import induction
from tests.families import FAMILIES, VOCABULARY, byte_tokenizer, tiny_subject, tiny_tokens
from tests.test_edits import dictionary
from tests.test_runs import pairs_of

LAYERS = HEADS = 12
METRICS = ("logit_difference", "log_probability", "kl")


def deep_subject() -> Subject:
    """12 layers of 12 heads of width 4, random."""
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=32, n_embd=48, n_layer=LAYERS, n_head=HEADS, bos_token_id=0, eos_token_id=0
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = GPT2LMHeadModel(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return Subject(model, byte_tokenizer(), name="deep")


def random_pairs(subject: Subject, *, rows: int = 3, positions: int = 12) -> Pairs:
    clean, corrupted, ends = (
        tiny_tokens(rows, size, seed=seed) for size, seed in ((positions, 1), (positions, 2), (2, 3))
    )
    clean[:, 0] = corrupted[:, 0] = 0
    lengths = torch.full((rows,), positions)
    return Pairs.aligned(subject, Batch(clean, lengths), Batch(corrupted, lengths), ends[:, 0], ends[:, 1])


class Counter:
    """What a model itself says it ran."""

    def __init__(self) -> None:
        self.forwards, self.rows, self.blocks, self.widest, self.vectors = 0, 0, 0, 0, 0


@contextmanager
def counting(subject: Subject) -> Iterator[Counter]:
    seen = Counter()

    def ran(_: Any, args: Any, kwargs: Any) -> None:
        rows = len(args[0] if args else kwargs["input_ids"])
        seen.forwards, seen.rows, seen.widest = seen.forwards + 1, seen.rows + rows, max(seen.widest, rows)

    def block(*_: Any) -> None:
        seen.blocks += 1

    def unembedded(_: Any, args: Any) -> None:
        seen.vectors = max(seen.vectors, args[0][..., 0].numel())

    base: Any = subject.model.base_model
    hooks = [base.register_forward_pre_hook(ran, with_kwargs=True)]
    hooks += [layer.register_forward_hook(block) for layer in base.h]
    hooks.append(subject.model.get_output_embeddings().register_forward_pre_hook(unembedded))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


# --- 144 heads -----------------------------------------------------------------------------------


@torch.no_grad()
def by_hand(model: Any, base: Tensor, source_run: Tensor) -> Tensor:
    """Logits (layer, head, row, token) with one head's z replaced at all positions but the first, one run each."""
    projections = [block.attn.c_proj for block in model.transformer.h]
    z: list[Tensor] = []
    hooks = [p.register_forward_pre_hook(lambda _, args: z.append(args[0].clone())) for p in projections]
    model(source_run)
    for hook in hooks:
        hook.remove()
    found = torch.zeros(LAYERS, HEADS, len(base), VOCABULARY)
    for layer, projection in enumerate(projections):
        for head in range(HEADS):

            def replace(_: Any, args: Any, layer: int = layer, head: int = head) -> tuple[Tensor]:
                mixed = args[0].clone()
                mixed[:, 1:, 4 * head : 4 * head + 4] = z[layer][:, 1:, 4 * head : 4 * head + 4]
                return (mixed,)

            hook = projection.register_forward_pre_hook(replace)
            found[layer, head] = model(base).logits[:, -1]
            hook.remove()
    return found


def test_144_heads_take_a_tenth_of_the_forwards_and_give_the_same() -> None:
    subject = deep_subject()
    pairs = random_pairs(subject, rows=2, positions=8)
    grid = Grid.of(Edit.parse("head.0=patch"), sites=sites_of(subject, "head"), units=range(HEADS))
    sweep(subject, pairs, Grid.of_edits(grid.edits[-1:]))  # The proof that runs may begin in the middle, once.
    with counting(subject) as ran:
        found = sweep(subject, pairs, grid, metrics=METRICS)
    question = Question(pairs.answers, pairs.wrong, subject.logits(pairs.clean.tokens)[:, -1])
    runs = {"denoise": (pairs.corrupted, pairs.clean), "noise": (pairs.clean, pairs.corrupted)}
    for direction, (base, source_run) in runs.items():
        logits = by_hand(subject.model, base.tokens, source_run.tokens).flatten(0, 1)
        for name in METRICS:
            wanted = torch.stack([metric(name)(one, question) for one in logits])
            patched = torch.tensor([cell.effect(name, direction).patched for cell in found.cells])
            torch.testing.assert_close(patched, wanted, rtol=1e-5, atol=1e-5)
            assert wanted.std(0).min() > 1e-3
    cost = found.cost
    assert (ran.forwards, ran.rows) == (cost.forwards, cost.rows)
    assert ran.blocks / LAYERS == pytest.approx(cost.equivalents)
    assert cost.one_by_one == 2 + 2 * 144 and cost.rows == 2 * cost.one_by_one
    assert cost.one_by_one / cost.equivalents > 10 and cost.one_by_one / cost.forwards > 10
    assert ran.vectors <= 64  # Logits of one position a row.


def test_a_forward_has_no_more_rows_than_allowed_and_that_changes_nothing() -> None:
    subject = deep_subject()
    pairs = random_pairs(subject, rows=4)
    grid = Grid.of(Edit.parse("head.0=patch"), sites=["head.3", "head.9"], units=range(5))
    wanted = sweep(subject, pairs, grid)
    for limit in (1, 3, 9):
        with counting(subject) as ran:
            found = sweep(subject, pairs, grid, at_once=limit)
        assert ran.widest <= limit and (ran.forwards, ran.rows) == (found.cost.forwards, found.cost.rows)
        for one, other in zip(found.cells, wanted.cells, strict=True):
            for mine, theirs in zip(one.effects, other.effects, strict=True):
                assert isinstance(mine, Effect) and isinstance(theirs, Effect)
                assert mine.patched == pytest.approx(theirs.patched, abs=1e-5)
                assert mine.recovered == pytest.approx(theirs.recovered, abs=1e-4)


def test_donors_of_prompts_go_with_their_rows() -> None:
    subject = deep_subject()
    pairs, site = random_pairs(subject, rows=5), "mlp.3"
    patch_values = Materials(source_runs=read_source_run(subject, pairs.clean, [site]))
    grid = Grid.of(Edit.parse(f"{site}=patch"), units=range(3))
    wanted, found = (
        sweep_prompts(
            subject, pairs.corrupted, grid, answers=pairs.answers, metrics=("kl",), materials=patch_values, at_once=n
        )
        for n in (64, 2)
    )
    for one, other in zip(found.cells, wanted.cells, strict=True):
        mine, theirs = one.effect("kl"), other.effect("kl")
        assert isinstance(mine, Shift) and isinstance(theirs, Shift)
        assert mine.edited == pytest.approx(theirs.edited, abs=1e-5)


# --- every kind of cell --------------------------------------------------------------------------


def check_pairs(subject: Subject, pairs: Pairs, found: Sweep, *, materials: Materials | None = None) -> None:
    """Against one patching experiment for each cell."""
    for cell in found.cells:
        alone = patching(subject, pairs, [cell.edit], materials=materials or Materials(), may_idle=True)
        for direction, one in alone.items():
            assert cell.max_change[direction] == pytest.approx(one.reports[0].max_change, rel=1e-4, abs=1e-6)
            for name, wanted in one.effects.items():
                effect = cell.effect(name, direction)
                assert isinstance(effect, Effect)
                for part in ("clean", "corrupted", "patched"):
                    assert getattr(effect, part) == pytest.approx(getattr(wanted, part), abs=2e-5)
                assert effect.formula == wanted.formula and (effect.reason is None) == (wanted.reason is None)


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_by_positions_of_every_site_equal_one_by_one(family: str) -> None:
    subject = tiny_subject(family)
    pairs = random_pairs(subject, positions=6)
    sites = ["embed", "resid_pre.2", *(site for site in subject.sites if site.endswith(".1"))]
    places = each_position(subject, pairs.clean)
    assert places.positions == (1, 2, 3, 4, 5)
    grid = Grid.of(Edit.parse("embed=patch"), sites=sites, positions=places.positions[3:], labels=places.labels[3:])
    found = sweep(subject, pairs, grid, metrics=METRICS, at_once=9)
    assert [len(axis.labels) for axis in found.axes] == [len(sites), 2] and len(found.cells) == 2 * len(sites)
    by_labels = {cell.labels: cell for cell in found.cells}
    assert by_labels["resid_post.1", places.labels[3]].edit == Edit.parse("resid_post.1=patch@4")
    check_pairs(subject, pairs, found)


def test_neurons_features_patterns_and_lists_equal_one_by_one() -> None:
    subject = tiny_subject()
    pairs = random_pairs(subject, positions=7)
    sae = dictionary()
    texts = ["resid_post.1@sae:3=patch", "mlp.2:5=patch@last", "pattern.1:2=patch", "resid_pre.1:way=patch"]
    grids = [
        Grid.of(Edit.parse("mlp.1:0=patch"), units=(3, 17, 60)),
        Grid.of(Edit.parse("resid_post.1@sae:0=patch"), units=range(5), positions=["3-4", "last"]),
        Grid.of(Edit.parse("pattern.0=patch"), sites=sites_of(subject, "pattern"), units=range(4)),
        Grid.of_edits(Edit.parse(text) for text in texts),
    ]
    materials = Materials(sources={"resid_post.1@sae": sae}, directions={"way": torch.arange(-12.0, 12.0)})
    for grid in grids:
        found = sweep(subject, pairs, grid, metrics=METRICS, materials=materials)
        check_pairs(subject, pairs, found, materials=materials)
        assert set(found.dictionaries) == ({"resid_post.1@sae"} if grid in (grids[1], grids[3]) else set())
    provenance = sweep(subject, pairs, grids[1], materials=materials).provenance
    assert provenance.dictionaries == {"resid_post.1@sae": sae.revision} and provenance.revision == subject.revision


@pytest.mark.parametrize("change", ["=0", "=mean", "=resample#3", "*=2", "+=1.5noise"])
def test_ablations_of_single_prompts_equal_one_by_one(change: str) -> None:
    subject = tiny_subject("llama")
    pairs = random_pairs(subject)
    grid = Grid.of(Edit.parse(f"head.0{change}"), sites=sites_of(subject, "head"), units=range(4))
    found = sweep_prompts(
        subject,
        pairs.clean,
        grid,
        answers=pairs.answers,
        metrics=("log_probability", "rank"),
        reference=pairs.corrupted,
    )
    materials = gather(subject, grid.edits, reference=pairs.corrupted)
    question = Question(pairs.answers)
    for cell in found.cells:
        both = compare(subject, pairs.clean, [cell.edit], materials=materials)
        for name in ("log_probability", "rank"):
            shift = cell.effect(name)
            assert not isinstance(shift, Effect)
            plain, edited = (metric(name)(logits, question) for logits in (both.before, both.after))
            assert shift.plain == pytest.approx(plain.tolist(), abs=2e-5)
            assert shift.edited == pytest.approx(edited.tolist(), abs=2e-5)
            assert shift.change.value == pytest.approx(float((edited - plain).mean()), abs=2e-5)
    assert found.cost.one_by_one == 13 and found.values("rank") == [c.effect("rank").change.value for c in found.cells]


def test_the_planted_heads_of_a_circuit_stand_out() -> None:
    circuit = induction("gpt2")
    grid = Grid.of(Edit.parse("head.0=patch"), sites=["head.0", "head.1"], units=(0, 1))
    found = sweep(circuit.subject, pairs_of(circuit), grid)
    assert [cell.labels for cell in found.top(2, metric="logit_difference", direction="noise")] == [
        ("head.0", "0"),
        ("head.1", "0"),
    ]
    values = dict(zip(grid.labels, found.values("logit_difference", "denoise"), strict=True))
    assert values["head.1", "0"] == pytest.approx(1, abs=1e-3) and values["head.1", "1"] == pytest.approx(0, abs=1e-3)


def test_a_model_that_cannot_begin_in_the_middle_is_swept_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = random_pairs(tiny_subject())
    grid = Grid.of(Edit.parse("head.0=patch"), sites=["head.1", "head.2"], units=range(2))
    wanted = sweep(tiny_subject(), pairs, grid)
    subject = tiny_subject()
    base: Any = subject.model.base_model
    forward = base.forward

    def nosy(*args: Any, **kwargs: Any) -> Any:
        base.h[0].attn.c_attn.weight.sum()
        return forward(*args, **kwargs)

    monkeypatch.setattr(base, "forward", nosy)
    found = sweep(subject, pairs, grid)
    assert found.cost.equivalents == found.cost.forwards and wanted.cost.equivalents < wanted.cost.forwards
    for direction in ("denoise", "noise"):
        assert found.values("logit_difference", direction) == pytest.approx(
            wanted.values("logit_difference", direction), abs=1e-4
        )


# --- no silent no-op, and the model left as it was -----------------------------------------------


def test_a_cell_that_changes_nothing_says_so_and_a_sweep_of_them_is_an_error() -> None:
    subject = tiny_subject()
    pairs = random_pairs(subject)
    edit = Edit.parse("resid_pre.1=patch")
    found = sweep(subject, pairs, Grid.of(edit, positions=["0", "5"]))
    assert [cell.max_change["denoise"] > 0 for cell in found.cells] == [False, True]
    assert found.values("logit_difference", "denoise")[0] == pytest.approx(0, abs=1e-5)
    with pytest.raises(NeuronautError, match="none of the 2 edits changed anything"):
        sweep(subject, pairs, Grid.of(edit, sites=["resid_pre.0", "resid_pre.2"], positions=["0"]))


def test_what_hardly_differs_is_withheld_with_the_reason() -> None:
    subject = tiny_subject()
    pairs = random_pairs(subject)
    pairs = Pairs(pairs.clean, pairs.corrupted, pairs.answers, pairs.answers)
    found = sweep(subject, pairs, Grid.of(Edit.parse("mlp_out.0=patch"), positions=["5", "last"]))
    assert found.values("logit_difference", "noise") == [None, None]
    effect = found.cells[0].effect("logit_difference", "noise")
    assert isinstance(effect, Effect) and "differ by 0 on average" in str(effect.reason)
    assert found.top(2, metric="logit_difference", direction="noise") == ()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda s, p: sweep(s, p, Grid.of_edits([Edit.parse("mlp.9:1=0")])), "no site 'mlp.9'"),
        (lambda s, p: sweep(s, p, Grid.of_edits([Edit.parse("head.0:9=0")])), "no unit 9"),
        (lambda s, p: sweep(s, p, Grid.of_edits([Edit.parse("mlp.0:1=mean")])), "needs a reference"),
        (lambda s, p: sweep(s, p, Grid.of_edits([Edit.parse("mlp.0:1=0")]), metrics=["nice"]), "no metric 'nice'"),
        (lambda s, p: sweep(s, p, Grid.of_edits([Edit.parse("mlp.0:1=0")]), metrics=[]), "measure 0 metrics"),
        (lambda s, p: sweep(s, p, Grid.of_edits([Edit.parse("mlp.0:1=0")]), at_once=0), "0 rows at once"),
        (
            lambda s, p: sweep(s, p, Grid.of_edits([Edit.parse("mlp.0:1=resample")]), reference=p.clean, at_once=2),
            "draws for all 3 prompts",
        ),
        (
            lambda s, p: sweep_prompts(s, p.clean, Grid.of_edits([Edit.parse("mlp.0=patch")]), answers=p.answers),
            "needs a source run",
        ),
        (
            lambda s, p: sweep_prompts(
                s, p.clean, Grid.of_edits([Edit.parse("mlp.0=0")]), answers=p.answers, metrics=["logit_difference"]
            ),
            "needs 'wrong'",
        ),
    ],
)
def test_what_does_not_fit_is_one_line_and_leaves_the_model(call: Callable[..., Any], says: str) -> None:
    subject = tiny_subject()
    pairs = random_pairs(subject)
    blocks, before = subject.model.transformer.h, subject.logits(pairs.clean.tokens)
    with pytest.raises(NeuronautError, match=says) as caught:
        call(subject, pairs)
    assert "\n" not in str(caught.value)
    assert subject.model.transformer.h is blocks and torch.equal(subject.logits(pairs.clean.tokens), before)
    assert torch.is_grad_enabled() and not any(
        m._forward_hooks or m._forward_pre_hooks for m in subject.model.modules()
    )


# --- grids ---------------------------------------------------------------------------------------


def test_grids_stand_row_by_row_and_keep_what_they_do_not_vary() -> None:
    grid = Grid.of(Edit.parse("head.0:1=patch@last"), sites=["head.0", "head.2"], units=(3, 5))
    assert [str(edit) for edit in grid.edits] == [
        "head.0:3=patch@last",
        "head.0:5=patch@last",
        "head.2:3=patch@last",
        "head.2:5=patch@last",
    ]
    assert grid.axes == (Axis("site", ("head.0", "head.2")), Axis("unit", ("3", "5")))
    assert grid.labels == [("head.0", "3"), ("head.0", "5"), ("head.2", "3"), ("head.2", "5")]
    assert Grid.of(Edit.parse("mlp.0=patch"), positions=[3, -1, '" a"']).edits[2] == Edit.parse('mlp.0=patch@" a"')
    with pytest.raises(NeuronautError, match="0 edits do not fill"):
        Grid.of_edits([])
    with pytest.raises(NeuronautError, match="0 edits do not fill"):
        Grid.of(Edit.parse("head.0=patch"), units=[])
    with pytest.raises(NeuronautError, match="1 edits do not fill a grid of shape \\(2,\\)"):
        Grid((Axis("unit", ("1", "2")),), (Edit.parse("mlp.0:1=0"),))
    with pytest.raises(NeuronautError, match="positions 'nowhere' are not understood"):
        Grid.of(Edit.parse("head.0=patch"), positions=["nowhere"])


def test_sites_and_positions_are_those_there_are() -> None:
    subject = tiny_subject("gpt_neox")
    assert (
        sites_of(subject, "head") == ("head.0", "head.1", "head.2") and sites_of(subject, "pattern")[2] == "pattern.2"
    )
    with pytest.raises(NeuronautError, match="no site of kind 'resid_mid'; it has embed, resid_pre.0-2"):
        sites_of(subject, "resid_mid")
    places = each_position(subject, Batch.of(subject, [[0, 5, 6, 7], [0, 5, 9, 7]]))
    five, seven = subject.decode_tokens([5, 7])
    assert places.labels == (f"1 {five!r}", "2", f"3 {seven!r}")
    with pytest.raises(NeuronautError, match=r"rows have \[3, 4\] tokens"):
        each_position(subject, Batch.of(subject, [[0, 5, 6, 7], [0, 5, 9]]))


# --- as data and as pictures ---------------------------------------------------------------------


def test_a_sweep_is_json_and_a_picture(tmp_path: Path) -> None:
    subject = tiny_subject()
    pairs = random_pairs(subject)
    places = each_position(subject, pairs.clean)
    grid = Grid.of(Edit.parse("mlp_out.0=patch"), sites=sites_of(subject, "mlp_out"), positions=places.positions[:5])
    found = sweep(subject, pairs, grid, metrics=METRICS)
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert [axis["name"] for axis in data["axes"]] == ["site", "position"] and len(data["cells"]) == 15
    for written, cell in zip(data["cells"], found.cells, strict=True):
        assert Edit.parse(written["edit"]) == cell.edit and tuple(written["labels"]) == cell.labels
        assert [tuple(one["patched"]) for one in written["effects"]] == [one.patched for one in cell.effects]
    assert data["cost"]["forwards"] == found.cost.forwards and data["provenance"]["revision"] == subject.revision
    one_axis = sweep_prompts(
        subject, pairs.clean, Grid.of(Edit.parse("mlp.0:1=0"), units=range(6)), answers=pairs.answers
    )
    for name, picture in (("grid.png", found), ("list.svg", one_axis)):
        picture.picture(tmp_path / name, title="$cost & <effect>")
        assert (tmp_path / name).stat().st_size > 4000
    with pytest.raises(NeuronautError, match="cannot draw loss over 2 axes"):
        found.picture(tmp_path / "none.png", metric="loss")
    with pytest.raises(NeuronautError, match="cannot be written"):
        found.picture(tmp_path / "grid.none")
    with pytest.raises(NeuronautError, match="no kl without direction; it has logit_difference denoise"):
        found.cells[0].effect("kl")


def test_pictures_draw_what_is_known(tmp_path: Path) -> None:
    rows, columns = ["a", "b"], ["c", "d", "e"]
    pictures.heat_map(
        [[1.0, None, -2.0], [0.0, 0.5, None]], rows=rows, columns=columns, title="t", path=tmp_path / "a.png"
    )
    with pytest.raises(NeuronautError, match="every value is withheld"):
        pictures.heat_map([[None], [None]], rows=rows, columns=["c"], title="t", path=tmp_path / "b.png")
    with pytest.raises(NeuronautError, match=r"2 rows of \[1, 2\] values do not fill 2 rows of 3"):
        pictures.heat_map([[1.0], [1.0, 2.0]], rows=rows, columns=columns, title="t", path=tmp_path / "b.png")
    series, bands = {"one": [1.0, 2.0, None], "two": [0.0, -1.0, 1.0]}, {"two": [Interval(-1, 1), None, Interval(0, 2)]}
    pictures.lines([0, 1, 2], series, x_label="dose", y_label="p", title="t", path=tmp_path / "c.png", intervals=bands)
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "c.png"}


def test_without_matplotlib_an_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(NeuronautError, match=r"pip install 'neuronaut\[plots\]'"):
        pictures.heat_map([[1.0]], rows=["a"], columns=["b"], title="t", path=tmp_path / "a.png")
