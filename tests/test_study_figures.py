"""The figures of overfitting, phases and kinds of noise, on made-up results: what they say and mark, and where."""

import dataclasses

import pytest
from test_studies import result, rows

from sglrlib.recipes import recipe
from sglrlib.show.style import alternative_text
from sglrlib.studies import noise_kinds, overfitting, phases, sweep

EPOCHS = 60  # of digits; the learning rate drops in epochs 39 and 54


def overfitted(factor=1, **changes):
    """A run whose norm and trace grow from 1 to factor after the first drop, and whose IIW starts far too high."""
    grown = [1 + (factor - 1) * max(0, epoch - 42) / 18 for epoch in range(1, EPOCHS + 1)]
    columns = dict(
        lr=[0.1] * EPOCHS, hessian_trace=grown, hessian_trace_error=[0.1] * EPOCHS, iiw_code=grown,
        iiw_paper=[1e6] * 5 + [100 * value for value in grown[5:]], batch_gradient_norm_own=grown,
        gradient_norm_hard=grown,
    )  # fmt: skip
    columns |= {f"{part}_{kind}": [50] * EPOCHS for part in ("train", "test") for kind in ("robust", "natural")}
    return result(rows(grown, **columns), **changes)


def test_the_first_tenth_of_the_epochs_stretches_no_axis_and_each_iiw_has_its_own():
    runs = {"PGD-AT": [overfitted(3)] * 2, "PGD-AT+SGLR": [overfitted(labels="self_guided")]}
    figure = overfitting.information(runs, "Slides")
    paper, code = figure.axes
    assert paper.get_ylim()[0] < 100 and 300 < paper.get_ylim()[1] < 1000 and paper.get_yscale() == "log"
    assert code.get_ylim()[1] < 10
    said = "IIW by PIB's formula grows 3.0-fold with PGD-AT, 1.0-fold with PGD-AT+SGLR"
    assert figure.get_suptitle().replace("\n", " ").endswith(said)
    assert "Slides: " in figure.get_supxlabel() and "PGD-AT 2, PGD-AT+SGLR 1" in figure.get_supxlabel()


def test_a_rule_with_much_information_and_little_loss_is_the_headline():
    much = overfitted(9, labels="smooth", correct=(80, 79))
    figure = overfitting.information_of_rules({"PGD-AT": [overfitted(3, correct=(90, 60))], "PGD-AT+LS": [much]})
    said = figure.get_suptitle().replace("\n", " ")
    assert (
        said == "PGD-AT+LS ends with 3.0 times the IIW of PGD-AT and loses 1.0 points of robust accuracy, PGD-AT 30.0"
    )


def test_only_a_piecewise_rate_has_drops_and_growth_is_marked_in_each_run():
    runs = {"a": [overfitted(3), overfitted(3, seed=1)], "b": [overfitted(schedule="cosine")]}
    figure = phases.over_epochs(runs)
    start = phases.growth_start_of(runs["a"][0])
    said = f"Piecewise learning rate: growth starts in epoch {start}, the rate first drops in epoch 39. "
    assert alternative_text(figure).startswith(f"{said}Cosine learning rate: growth starts in no epoch. ")
    for axis, triangles in zip(figure.axes, (2, 0, 2, 0), strict=True):  # rate, robust accuracy, gradient norm, trace
        assert [line.get_xdata()[0] for line in axis.lines if line.get_marker() == "v"] == [start] * triangles
        assert [text.get_text() for text in axis.texts].count("lr / 10") == 2
        assert {line.get_linestyle() for line in axis.lines if len(line.get_xdata()) == EPOCHS} == {"-", "--"}
    alone = phases.over_epochs({"b": runs["b"]})
    assert not [text for axis in alone.axes for text in axis.texts if text.get_text() == "lr / 10"]


def test_kinds_of_noise_are_named_in_words_and_answered_with_yes_or_no():
    changes = noise_kinds.spoilt(["none", "gaussian", "symmetric"], 0.4)
    assert changes == {
        "no noise": dict(noise_rate=0.0),
        "Gaussian images": dict(noise="gaussian", noise_rate=0.4),
        "wrong labels": dict(noise="symmetric", noise_rate=0.4),
    }
    right = dict(zip(changes, [(60, 60), (60, 80), (80, 60)], strict=True))
    runs = {
        kind: [overfitted(seed=seed, correct=right[kind], n=1000, **how) for seed in range(3)]
        for kind, how in changes.items()
    }
    assert list(noise_kinds.table(runs).overfits) == ["open", "no", "yes"]
    figure = noise_kinds.kinds_over_epochs(runs)
    assert "2.0 with wrong labels, 0.0 with no noise, −2.0 with Gaussian images" in figure.get_suptitle().replace(
        "\n", " "
    )
    assert "40% of the training samples spoilt" in figure.get_supxlabel().replace("\n", " ")
    panels = [axis.get_ylabel() for axis in figure.axes]
    assert panels == ["Natural, training (%)", "Natural, test (%)", "Robust, training (%)", "Robust, test (%)"]


@pytest.mark.parametrize(("dataset", "same"), [("digits", True), ("cifar10", False)])
def test_budgets_are_compared_with_runs_on_the_same_data_alone(dataset, same):
    runs = noise_kinds.by_budget(
        [overfitted(correct=(90, 90 - eps), **noise_kinds.attack(eps))] for eps in noise_kinds.budgets("digits")
    )
    other = dataclasses.replace(result([]), config=recipe(dataset, noise_rate=0.0))
    figure = noise_kinds.strengths(runs, "B.3", [other])
    said = "Most robust accuracy is lost at ε = 39/255 (39.0 points), least at 0/255 (0.0). "
    assert alternative_text(figure).startswith(said)
    assert ("no planted noise" in [text.get_text() for text in figure.axes[1].texts]) == same
    config = noise_kinds.at_strength(noise_kinds.USUAL, "cifar10", "small", seed=2)
    assert config == recipe("cifar10", "small", seed=2)


def test_a_sweep_is_drawn_one_kind_of_noise_at_a_time_and_peoples_labels_as_one():
    """CIFAR-N has no labels of test images, and the paper's table nothing of people's labels."""
    noises = [("symmetric", 0.2), ("symmetric", 0.6), ("human_worst", 1.0), ("human_aggregate", 1.0)]
    columns = ("train_natural", "train_natural_clean", "test_natural", "test_natural_noisy", "train_natural_wrong")
    runs = [
        result(
            rows([1, 1], **{name: [50, 60] for name in columns}), correct=(60, 60), dataset="cifar10",
            labels=rule, noise=noise, noise_rate=rate,
        )
        for noise, rate in noises for rule in ("hard", "self_guided")
    ]  # fmt: skip
    parts = sweep.by_kind(sweep.by_noise({"any": runs}))
    assert {kind: list(part) for kind, part in parts.items()} == {"symmetric": noises[:2], "human": noises[2:]}
    drawn, people = (sweep.figure(part, "Figure B.4") for part in parts.values())
    assert [axis.get_title() for axis in drawn.axes[:2]] == ["20% noise", "60% noise"]
    assert [axis.get_title() for axis in people.axes[:2]] == ["people's labels, worst", "people's labels, aggregate"]
    for figure, styles, papers in ((drawn, {"-", ":"}, True), (people, {"-"}, False)):
        assert {line.get_linestyle() for line in figure.axes[0].lines if len(line.get_xdata()) == 2} - {"--"} == styles
        assert ("Hollow, at the right: the paper's" in " ".join(figure.get_supxlabel().split())) == papers
