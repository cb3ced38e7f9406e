"""Linear probes: against naive fits, on planted properties, on nothing at all, and as directions of edits."""

import random

import pytest
import torch
from torch import Tensor

from neuronaut.causal.edits import Edit
from neuronaut.causal.intervene import Materials, apply
from neuronaut.causal.measures import Interval
from neuronaut.causal.probes import PENALTIES, Method, Probe, Tokens, fit_probe, probe, read_examples, shuffle_labels
from neuronaut.causal.prompts import Batch
from neuronaut.causal.separation import share_interval
from neuronaut.subject.errors import NeuronautError
from neuronaut.subject.model import Subject
from tests.circuits import induction
from tests.families import tiny_subject, tiny_tokens

METHODS: tuple[Method, ...] = ("ridge", "mean_difference", "lda", "logistic")
every_method = pytest.mark.parametrize("method", METHODS)


def clouds(count: int, width: int, *, shift: float, seed: int = 0) -> tuple[Tensor, list[bool]]:
    """Two Gaussian clouds of unequal size, `shift` apart along the first axis."""
    generator = torch.Generator().manual_seed(seed)
    labels = [random.Random(f"{seed}:{row}").random() < 0.4 for row in range(count)]
    vectors = torch.randn(count, width, generator=generator) + 3
    vectors[:, 0] += shift * torch.tensor(labels)
    return vectors, labels


def probed(vectors: Tensor, labels: list[bool], method: Method = "ridge", **options: int) -> Probe:
    return fit_probe(vectors, labels, site="resid_post.0", positions="last", method=method, **options)


@every_method
@pytest.mark.parametrize("seed", range(8))
def test_a_probe_is_the_naive_fit(method: Method, seed: int) -> None:
    """Ridge with the penalty that leaving each example out in turn finds best, solved anew each time."""
    vectors, labels = clouds(24, 20, shift=1.5, seed=seed)
    found = probed(vectors, labels, method)
    generator, truth = torch.Generator().manual_seed(0), torch.tensor(labels)
    test: list[int] = []
    for value in (True, False):
        members = (truth == value).nonzero()[:, 0]
        members = members[torch.randperm(len(members), generator=generator)]
        test += members[: round(0.3 * len(members))].tolist()
    train = [row for row in range(24) if row not in test]
    inputs, targets = vectors[train].double(), torch.where(truth[train], 1.0, -1.0).double()
    true, false = (inputs[targets == sign].mean(0) for sign in (1, -1))
    errors = {penalty: press(inputs, targets, penalty) for penalty in PENALTIES}
    penalty = min(errors, key=errors.__getitem__)
    if method == "ridge":
        weights, constant = solve(inputs, targets, penalty, inputs)
    elif method == "logistic":
        weights, constant = newton(inputs, targets, penalty * unit(inputs) / 8)
    else:
        weights = true - false if method == "mean_difference" else fisher(inputs, targets, penalty * unit(inputs))
        constant = -(true + false) @ weights / 2
    assert torch.cosine_similarity(found.direction.double(), weights, dim=0) == pytest.approx(1, abs=1e-6)
    along = vectors[test].double() @ weights + constant
    called = found.contained(vectors[test]) > found.threshold
    assert torch.equal(called, along > 0)
    assert found.accuracy.value == pytest.approx(float((called == truth[test]).double().mean()))
    pairs = [float(a > b) + float(a == b) / 2 for a in along[truth[test]] for b in along[~truth[test]]]
    assert found.auroc.value == pytest.approx(sum(pairs) / len(pairs))
    assert found.trained == len(train) and found.accuracy.n == len(test)


def unit(inputs: Tensor) -> Tensor:
    return torch.linalg.svdvals(inputs - inputs.mean(0)).square().mean()


def fisher(inputs: Tensor, targets: Tensor, penalty: Tensor) -> Tensor:
    """(scatter within the classes + penalty)^-1 (difference of means)."""
    parts = [inputs[targets == sign] for sign in (1, -1)]
    within = sum((part - part.mean(0)).T @ (part - part.mean(0)) for part in parts)
    assert isinstance(within, Tensor)
    eye = torch.eye(inputs.shape[1], dtype=torch.float64)
    return torch.linalg.solve(within + penalty * eye, parts[0].mean(0) - parts[1].mean(0))


def newton(inputs: Tensor, targets: Tensor, penalty: Tensor) -> tuple[Tensor, Tensor]:
    """Logistic regression with penalty |w|², the constant free, by damped Newton steps."""
    augmented = torch.cat([inputs - inputs.mean(0), torch.ones(len(inputs), 1)], dim=1)
    shrink = torch.diag(torch.tensor([*[2 * float(penalty)] * inputs.shape[1], 0.0]).double())
    weights = torch.zeros(augmented.shape[1]).double()
    for _ in range(400):
        chance = torch.sigmoid(augmented @ weights)
        gradient = augmented.T @ (chance - (targets + 1) / 2) + shrink @ weights
        curvature = augmented.T @ (augmented * (chance * (1 - chance))[:, None]) + shrink
        weights = weights - 0.3 * torch.linalg.solve(curvature, gradient)
    return weights[:-1], weights[-1] - inputs.mean(0) @ weights[:-1]


def solve(inputs: Tensor, targets: Tensor, penalty: float, whole: Tensor) -> tuple[Tensor, Tensor]:
    """The penalty's unit is that of the whole training set."""
    middle, offset = inputs.mean(0), targets.mean()
    centred = inputs - middle
    gram = centred.T @ centred + penalty * unit(whole) * torch.eye(inputs.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(gram, centred.T @ (targets - offset))
    return weights, offset - middle @ weights


def press(inputs: Tensor, targets: Tensor, penalty: float) -> float:
    errors = []
    for row in range(len(inputs)):
        rest = [other for other in range(len(inputs)) if other != row]
        weights, constant = solve(inputs[rest], targets[rest], penalty, inputs)
        errors.append(float(targets[row] - inputs[row] @ weights - constant) ** 2)
    return sum(errors)


@every_method
def test_the_direction_goes_from_the_false_mean_to_the_true_one(method: Method) -> None:
    vectors, labels = clouds(400, 5, shift=4)
    found, truth = probed(vectors, labels, method), torch.tensor(labels)
    contained = found.contained(vectors)
    assert float(contained[truth].mean() - contained[~truth].mean()) == pytest.approx(1, abs=0.05)
    assert float(found.direction.norm()) == pytest.approx(4, abs=0.3)
    low, high = found.accuracy.interval or (0, 0)
    assert found.accuracy.value > 0.92 and low <= found.accuracy.value <= high and found.base_rate < 0.7
    low, high = found.auroc.interval or (0, 0)
    assert 0.94 < low <= found.auroc.value <= high <= 1
    assert found.control.p == pytest.approx(1 / 101) and found.control.percentile == 100


@pytest.mark.parametrize("method", ["ridge", "mean_difference"])
def test_tokens_are_left_out_text_by_text_and_judged_by_their_mean(method: Method) -> None:
    """Texts of several tokens: the penalty is the best where each text is left out whole, solved anew each time."""
    generator, labels = torch.Generator().manual_seed(3), [number % 2 == 0 for number in range(16)]
    owners = torch.tensor([number for number in range(16) for _ in range(1 + number % 4)])
    tokens = torch.randn(len(owners), 10, generator=generator)
    tokens += 2 * torch.randn(16, 10, generator=generator)[owners]
    tokens[:, 0] += 3 * torch.tensor(labels)[owners]
    means = torch.stack([tokens[owners == number].mean(0) for number in range(16)])
    found = fit_probe(
        means, labels, site="x.0", positions="all", method=method, shuffles=3, tokens=Tokens(tokens, owners)
    )
    generator, truth = torch.Generator().manual_seed(0), torch.tensor(labels)
    tested = [int(row) for value in (True, False) for row in draw_tested((truth == value).nonzero()[:, 0], generator)]
    kept = ~torch.isin(owners, torch.tensor(tested))
    inputs, targets, groups = tokens[kept].double(), torch.where(truth[owners[kept]], 1.0, -1.0).double(), owners[kept]
    true, false = (inputs[targets == sign].mean(0) for sign in (1, -1))
    weights = true - false
    if method == "ridge":
        errors = {
            penalty: sum(
                float((targets[out] - inputs[out] @ weights - constant).square().sum())
                for group in groups.unique()
                for out in [groups == group]
                for weights, constant in [solve(inputs[~out], targets[~out], penalty, inputs)]
            )
            for penalty in PENALTIES
        }
        weights, _ = solve(inputs, targets, min(errors, key=errors.__getitem__), inputs)
    assert torch.cosine_similarity(found.direction.double(), weights, dim=0) == pytest.approx(1, abs=1e-6)
    along = means[tested].double() @ weights
    pairs = [float(a > b) for a in along[truth[tested]] for b in along[~truth[tested]]]
    assert found.auroc.value == pytest.approx(sum(pairs) / len(pairs)) and found.auroc.n == len(tested)


def draw_tested(members: Tensor, generator: torch.Generator) -> Tensor:
    return members[torch.randperm(len(members), generator=generator)][: round(0.3 * len(members))]


def test_examples_that_are_alike_are_on_one_side() -> None:
    """Each example has a twin; a probe that saw the twin of a test example would tell it on pure noise."""
    halves = torch.randn(20, 200, generator=torch.Generator().manual_seed(0))
    vectors, labels = torch.cat([halves, halves]), [number % 2 == 0 for number in range(20)] * 2
    leaky = probed(vectors, labels)
    clean = fit_probe(vectors, labels, site="x.0", positions="last", clusters=[*range(20)] * 2)
    assert leaky.auroc.value > 0.9 and clean.auroc.value < 0.8
    with pytest.raises(NeuronautError, match="20 examples are true, 1 when near-duplicates count once, 0 of them"):
        fit_probe(vectors, labels, site="x.0", positions="last", clusters=labels)


def test_clusters_count_once_on_what_is_independent_of_the_label() -> None:
    """Clusters of eight of one label each: examples shuffled one by one would make chance look like a finding."""
    labels, clusters = [number // 8 % 2 == 0 for number in range(80)], [number // 8 for number in range(80)]
    found = []
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        vectors = torch.randn(10, 12, generator=generator)[clusters] + 0.1 * torch.randn(80, 12, generator=generator)
        found.append(
            fit_probe(
                vectors, labels, site="x.0", positions="last", method="mean_difference", clusters=clusters, seed=seed
            )
        )
    assert sum(one.control.p <= 0.05 for one in found) <= 5  # expected 2 at most
    covered = [one.auroc.interval and one.auroc.interval.low <= 0.5 <= one.auroc.interval.high for one in found]
    assert sum(map(bool, covered)) >= 36
    assert {(one.tested, one.auroc.n, one.accuracy.n) for one in found} == {(16, 2, 2)}
    assert found[0].accuracy.interval == Interval(*share_interval(found[0].accuracy.value, 2))


def test_a_shuffle_keeps_clusters_of_one_label_whole_and_stays_within_those_of_both() -> None:
    labels = torch.tensor([True] * 3 + [False] * 2 + [True, False, False] + [True, False])
    together = torch.tensor([7] * 3 + [4] * 2 + [9] * 3 + [1, 2])
    drawn = shuffle_labels(labels, together, 300, torch.Generator().manual_seed(0)).T
    assert torch.equal(drawn[0], labels)
    for one in drawn:
        whole = [one[together == cluster] for cluster in (7, 4, 1, 2)]
        assert all(bool(part.all()) or not bool(part.any()) for part in whole)
        assert sum(bool(part[0]) for part in whole) == 2 and int(one[together == 9].sum()) == 1
    assert len({tuple(one.tolist()) for one in drawn}) == 6 * 3


def test_where_all_examples_differ_clusters_change_nothing() -> None:
    vectors, labels = clouds(40, 6, shift=1)
    plain, apart = (
        fit_probe(vectors, labels, site="x.0", positions="last", clusters=clusters) for clusters in (None, range(40))
    )
    generator, other = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    drawn = shuffle_labels(torch.tensor(labels), torch.arange(40), 1, generator)[:, 1]
    assert torch.equal(drawn, torch.tensor(labels)[torch.randperm(40, generator=other)])
    assert plain.control == apart.control and plain.auroc == apart.auroc and plain.accuracy == apart.accuracy
    assert plain.tested == plain.auroc.n


@every_method
def test_on_nothing_a_probe_is_as_good_as_its_shuffles(method: Method) -> None:
    """More coordinates than examples, so that every labelling of the training examples can be fitted."""
    found = [probed(*clouds(60, 100, shift=0, seed=seed), method, seed=seed, shuffles=40) for seed in range(60)]
    assert sum(one.control.p <= 0.1 for one in found) <= 12  # expected 6; above 12 once in 200 tries
    assert sum(one.auroc.value for one in found) / 60 == pytest.approx(0.5, abs=0.05)
    covered = [one.auroc.interval and one.auroc.interval.low <= 0.5 <= one.auroc.interval.high for one in found]
    assert sum(map(bool, covered)) >= 45


@pytest.fixture(scope="module")
def after_w3() -> tuple[Subject, Batch, list[bool]]:
    """The induction circuit with random prompts: is the word before the last one w3?"""
    subject, rng = induction("gpt2").subject, random.Random(0)
    rows, labels = [], []
    for number in range(80):
        words = rng.sample([word for word in range(1, 16) if word != 3], 5)
        words[3] = 3 if number % 2 else words[3]
        rows.append([0, *words[rng.randint(0, 2) :]])
        labels.append(bool(number % 2))
    distinct = [row for row in range(80) if rows[row] not in rows[:row]]
    return subject, Batch.of(subject, [rows[row] for row in distinct]), [labels[row] for row in distinct]


@every_method
def test_what_the_previous_token_head_has_written_can_be_read_behind_it(
    after_w3: tuple[Subject, Batch, list[bool]], method: Method
) -> None:
    subject, batch, labels = after_w3
    behind = probe(subject, batch, labels, site="resid_mid.0", method=method)
    assert behind.auroc.value == 1 and behind.accuracy.value == 1 and behind.control.p < 0.02
    # The channel that head 0.0 writes for w3; tokens take 16 channels and the block begins behind them.
    assert int(behind.direction.abs().argmax()) == 16 + 2
    before = probe(subject, batch, labels, site="resid_pre.0", method=method)
    assert before.auroc.value < 0.75 and before.control.p > 0.05
    assert before.auroc.interval is not None and before.auroc.interval.low < 0.5


def test_adding_the_direction_once_makes_a_false_example_a_true_one(
    after_w3: tuple[Subject, Batch, list[bool]],
) -> None:
    subject, batch, labels = after_w3
    found = probe(subject, batch, labels, site="resid_mid.0", method="mean_difference")
    false = batch.take([row for row, label in enumerate(labels) if not label])
    before = found.contained(read_examples(subject, false, site="resid_mid.0"))
    edit = Edit.parse("resid_mid.0:after+=1@last")
    with apply(subject, false, [edit], materials=Materials(directions={"after": found.direction})):
        after = found.contained(read_examples(subject, false, site="resid_mid.0"))
    assert torch.allclose(after - before, torch.ones(len(false)), atol=1e-5)
    assert (before < found.threshold).all() and (after > found.threshold).all()


def test_an_example_is_the_mean_over_its_positions_whatever_the_padding() -> None:
    subject = tiny_subject("llama")
    rows = [[0, *row[: 3 + number % 5]] for number, row in enumerate(tiny_tokens(70, 8).tolist())]
    found = read_examples(subject, Batch.of(subject, rows), site="mlp.1", positions="all")
    for number in (0, 3, 69):
        wanted = subject.read(torch.tensor([rows[number]]), ["mlp.1"])["mlp.1"][0, 1:].mean(0)
        assert torch.allclose(found[number], wanted, atol=1e-5)


def test_the_same_seed_gives_the_same_probe_and_leaves_the_generator_alone() -> None:
    vectors, labels = clouds(60, 8, shift=1)
    state = torch.random.get_rng_state()
    one, other, third = (probed(vectors, labels, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.direction, other.direction) and one.control == other.control
    assert not torch.equal(one.direction, third.direction)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_what_cannot_be_probed_is_said() -> None:
    subject = tiny_subject("gpt2")
    batch, labels = Batch.of(subject, tiny_tokens(20, 6).tolist()), [row % 2 == 0 for row in range(20)]
    with pytest.raises(NeuronautError, match="20 examples and 3 labels"):
        probe(subject, batch, labels[:3], site="mlp.1")
    with pytest.raises(NeuronautError, match="4 examples are true, 1 of them to test on; wanted at least 2"):
        probe(subject, batch, [row < 4 for row in range(20)], site="mlp.1")
    twice = batch.take([*range(19), 3])
    with pytest.raises(NeuronautError, match="examples 3 and 19 are the same up to the probed position 5"):
        probe(subject, twice, labels, site="mlp.1")
    with pytest.raises(NeuronautError, match="same mean at mlp.1"):
        fit_probe(torch.full((20, 4), 0.1), labels, site="mlp.1", positions="last", method="mean_difference")
    with pytest.raises(NeuronautError, match="no probe by 'svm' with 100 shuffles; methods are ridge, mean_difference"):
        probe(subject, batch, labels, site="mlp.1", method="svm")  # pyright: ignore[reportArgumentType]
