"""The rankings of training labels: on tables made by hand, on small runs, and through the notebook."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from shell import execute

from sglrlib.checks import UsageError
from sglrlib.method.datasets import DATASETS
from sglrlib.paths import ROOT
from sglrlib.recipes import recipe
from sglrlib.store.checkpoint import Damaged
from sglrlib.studies import doubt, doubt_figures
from sglrlib.studies.doubt import (
    Ranking,
    beyond_chance,
    by_refined_labels,
    claims,
    confident_learning,
    fold_runs,
    left_out,
    refined_labels,
)
from sglrlib.training.networks import load_model
from sglrlib.training.runs import run
from sglrlib.training.train import run_data

SILENT = dict(device="cpu", say=lambda line: None)


def ranking_of(order, flagged):
    """The ranking that names positions in this order, the first so many of them flagged; no likely classes."""
    mass = torch.empty(len(order), dtype=torch.float64)
    mass[order] = torch.linspace(0, 1, len(order), dtype=torch.float64)
    return Ranking(mass, mass < mass[order][flagged], torch.zeros(len(order), dtype=torch.long))


@pytest.mark.parametrize("rank", [confident_learning, by_refined_labels])
def test_either_ranking_flags_the_wrong_labels_and_no_other(rank):
    truth = torch.arange(90) % 3
    p = F.one_hot(truth, 3) * 0.85 + torch.full((90, 3), 0.05, dtype=torch.float64)
    p[2] = torch.tensor([0.3, 0.1, 0.6])  # the least sure of the right ones
    p[40] = torch.tensor([0.07, 0.88, 0.05])  # the least sure of the wrong ones, whose truth is 1
    y = truth.clone()
    y[[4, 40, 77]] = torch.tensor([2, 0, 1])
    ranking = rank(y, p)
    assert ranking.flagged.nonzero().flatten().tolist() == [4, 40, 77]
    assert ranking.order[:4].tolist() == [4, 77, 40, 2]
    assert ranking.mass[[4, 40, 77, 2, 0]].tolist() == pytest.approx([0.05, 0.07, 0.05, 0.6, 0.9])
    assert torch.equal(ranking.likely, truth)


def test_every_image_is_judged_by_the_network_of_the_fold_that_left_it_out(small, store):
    config = small(noise_rate=0.5, train_size=50, diagnostics=("calibration",))
    folds, data = fold_runs(config, 3), run_data(config).train
    assert not any(fold.diagnostics for fold in folds)
    assert min(run(fold, (), **SILENT).best_epoch for fold in folds) < config.epochs  # so best and last differ
    for fold in folds:
        kept = torch.arange(50) % 3 != fold.fold
        assert torch.equal(run_data(fold).train.y, data.y[kept]) and fold.title == "Standard"
    found = left_out(folds)
    for i in (0, 10, 20, 49):
        expected = load_model(folds[i % 3], "last")(data.x([i])).double().softmax(1)[0]
        assert torch.allclose(found[i], expected, atol=1e-6)
    assert torch.allclose(found.sum(1), torch.ones(50, dtype=torch.float64))


@pytest.mark.parametrize("variant", ["release", "algorithm_1"])
def test_refined_labels_are_those_of_the_run_and_sum_to_one(small, store, variant):
    config = small(variant=variant, noise_rate=0.5, refine_start=0.75, attack_steps=0, train_size=50)
    run(config, (), **SILENT)
    p = refined_labels(config)
    assert p.shape == (50, 10) and torch.allclose(p.sum(1), torch.ones(50, dtype=torch.float64))
    if variant == "release":  # two updates leave at least 0.9 ** 2 on the given label
        ranking = by_refined_labels(run_data(config).train.y, p)
        assert ranking.mass.min() >= 0.81 - 1e-6 and not ranking.flagged.any()


def test_average_precision_by_hand():
    wrong = torch.tensor([True, False, True, False])
    gain, error = beyond_chance(ranking_of([0, 1, 2, 3], 2), wrong)
    assert gain == pytest.approx(100 * ((1 + 2 / 3) / 2 - 1 / 2)) and error > 0


def test_verdicts_of_a_right_a_reversed_and_a_random_order(small):
    wrong = torch.arange(600) < 150
    orders = [torch.arange(600), torch.arange(599, -1, -1), torch.randperm(600, generator=torch.manual_seed(0))]
    expected = [["seen"] * 3, ["not seen"] * 3, ["not seen"] * 3]
    for order, answers in zip(orders, expected, strict=True):
        found = claims([(small(), {"it": ranking_of(order, 140)}, wrong)])
        assert [claim.word.removesuffix(" in this run") for claim in found] == answers
    assert len(claims([(small(), {"it": ranking_of(orders[0], 0)}, wrong)])) == 2  # nothing flagged, so no precision
    assert claims([]) == []


def test_claims_name_each_ranking_and_whose_labels_they_are():
    wrong = torch.arange(20) < 5
    both = {"one": ranking_of(torch.arange(20), 5), "other": ranking_of(torch.arange(20), 5)}
    people = recipe("cifar10", "small", noise="human_worst", noise_rate=1.0)
    of = [claim.of for claim in claims([(people, both, wrong)])]
    assert [text.partition(":")[0] for text in of] == ["one"] * 3 + ["other"] * 3
    assert all(text.endswith(", people's labels, worst") for text in of)


def test_rankings_are_kept_for_the_registry(small, tmp_path, monkeypatch):
    monkeypatch.setattr("sglrlib.studies.doubt.RESULTS", tmp_path)
    wrong, ranking = torch.arange(600) < 150, ranking_of(torch.arange(600), 140)
    assert doubt.kept(small()) is None
    doubt.keep(small(), {"it": ranking}, wrong)
    rankings, again = doubt.kept(small())
    assert torch.equal(again, wrong) and torch.equal(rankings["it"].flagged, ranking.flagged)
    assert beyond_chance(rankings["it"], again) == pytest.approx(beyond_chance(ranking, wrong))
    third = ranking_of(torch.arange(600), 150)
    three = claims([(small(), {"it": each}, wrong) for each in (ranking, ranking, third)])
    assert [claim.seeds for claim in three] == [3, 3, 3]
    assert three[2].effect == pytest.approx(100 * (2 * 140 / 150 + 1) / 3 - 50)


def test_the_order_of_the_first_is_kept_where_their_masses_round_to_the_same(small, tmp_path, monkeypatch):
    """Finding: fourteen of the sixteen labels doubted most were wrong by what was kept, and sixteen by the ranking."""
    monkeypatch.setattr("sglrlib.studies.doubt.RESULTS", tmp_path)
    mass = torch.cat([1e-7 * torch.rand(40, generator=torch.manual_seed(0)).double(), torch.full((10,), 0.5)])
    ranking = doubt.Ranking(mass, mass < 0.1, torch.arange(50) % 10)
    doubt.keep(small(), {"it": ranking}, mass < 0.1)
    again = doubt.kept(small())[0]["it"]
    first = ranking.order[: doubt.FIRST]
    assert torch.equal(again.order[: doubt.FIRST], first) and torch.equal(again.likely[first], first % 10)
    assert (again.likely == -1).sum() == 50 - doubt.FIRST


def test_a_figure_of_doubts_says_whose_error_they_may_be(small):
    """With known wrong labels which these are; without, that the network may be wrong itself."""
    for config, message, caveat in (
        (small(noise_rate=0.5, train_size=50), "16 (a) and 0 (b) are wrong", "Framed, ×: the label is wrong"),
        (small(noise_rate=0.0, train_size=50), "none of them known to be wrong", "may be the network's own error"),
    ):
        train = run_data(config).train
        wrong = train.y != train.y_clean
        rankings = {
            title: doubt.Ranking(mass, wrong, train.y)
            for title, mass in (("a", 1.0 - wrong.double()), ("b", wrong.double()))
        }
        drawn = doubt_figures.most_doubted(rankings, train, config)
        said = " ".join(f"{drawn.get_suptitle()} {drawn.get_supxlabel()}".split())
        assert message in said and caveat in said
        framed = [axis.spines["left"].get_visible() for axis in drawn.axes]
        assert framed == [bool(wrong.any())] * 16 + [False] * 16


def test_precision_is_drawn_for_every_seed():
    wrong, of = torch.arange(600) < 150, dict(noise_rate=0.3)
    found = [(recipe(seed=seed, **of), {"a": ranking_of(torch.arange(600), 140 + seed)}, wrong) for seed in range(2)]
    found = [(config, rankings | {"b": rankings["a"]}, wrong) for config, rankings, wrong in found]
    drawn = doubt_figures.precision(found)
    assert "a 100% (recall 94%), b 100% (recall 94%)" in " ".join(drawn.get_suptitle().split())
    small = " ".join(drawn.get_supxlabel().split())
    assert "30% of the labels drawn anew: 150, 150 wrong; seeds: 2, left the first" in small
    assert [text.get_text() for text in drawn.axes[1].get_legend().get_texts()] == [
        f"{name}: average precision 100%" for name in "ab"
    ]


def test_images_are_at_hand_only_where_nothing_is_to_be_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr(doubt_figures.paths, "DATA", tmp_path)
    assert doubt_figures.at_hand("digits") and not doubt_figures.at_hand("cifar10")
    for name in ("cifar-10-batches-py", "cifar_n"):
        (tmp_path / name).mkdir()
    assert doubt_figures.at_hand("cifar10") and not doubt_figures.at_hand("cifar100")


def test_people_agree_where_all_three_say_the_same_and_it_is_not_the_label(monkeypatch):
    said = dict(random_1=[1, 1, 2, 3], random_2=[1, 1, 2, 3], random_3=[1, 2, 2, 3])
    said = {name: torch.tensor(labels) for name, labels in said.items()}
    monkeypatch.setattr(doubt, "human_labels", lambda dataset: said)
    places, theirs = doubt.agreed_wrong(torch.tensor([0, 0, 2, 1]))
    assert places.tolist() == [0, 3] and theirs.tolist() == [1, 3]


def test_images_that_a_network_never_saw_are_held_against_people(store, monkeypatch):
    """Two networks of a run of 20 of 60 images, 10 of them for validation: 30 are left, 3 contradicted by people."""
    images, y = np.random.default_rng(0).integers(0, 256, (60, 3, 32, 32), dtype=np.uint8), np.arange(60) % 10
    every = (images, y), (images, y)
    monkeypatch.setitem(DATASETS, "cifar10", replace(DATASETS["cifar10"], load=lambda: every))
    sizes = dict(train_size=20, val_size=10, test_size=20, train_eval_size=10, attacked_size=10, diagnostics=())
    config = recipe("cifar10", "small", labels="self_guided", epochs=1, eval_steps=1, attack_steps=1, **sizes)
    used = run_data(config)
    rest = sorted(set(range(60)) - {*used.train.position.tolist(), *used.val.position.tolist()})
    people = torch.arange(60) % 10
    people[rest[:3]] += 10
    said = {f"random_{i}": people for i in (1, 2, 3)}
    monkeypatch.setattr(doubt, "human_labels", lambda dataset: said)
    assert doubt.rankings_of_unseen(config) is None  # neither network is there
    for each in (config, config.but(labels="hard")):
        run(each, (), **SILENT)
    of, rankings, wrong = doubt.rankings_of_unseen(config)
    split = doubt.unseen(config)
    assert of is config and list(rankings) == ["PGD-AT", "PGD-AT+SGLR"] and sorted(split.position.tolist()) == rest
    assert sorted(split.position[wrong].tolist()) == rest[:3]
    assert torch.equal(split.y_clean, people[split.position])
    i = int(wrong.nonzero()[0])
    expected = load_model(config, "last")(split.x([i])).double().softmax(1)[0, split.y[i]]
    assert rankings["PGD-AT+SGLR"].mass[i].item() == pytest.approx(expected.item(), abs=1e-6)
    drawn = doubt_figures.most_doubted(rankings, split, config)
    small = " ".join(drawn.get_supxlabel().split())
    assert "30 training labels, none of them trained on" in small and "three people agree on another class" in small
    assert "contradicted by people" in " ".join(drawn.get_suptitle().split())
    assert doubt.rankings_of_unseen(config.but(noise_rate=0.5)) is None


def test_labels_that_people_contradict_are_found_where_they_come_first(small):
    wrong = torch.arange(20) < 5
    four_of_five = ranking_of(torch.tensor([0, 1, 2, 3, 10, 4, *range(5, 10), *range(11, 20)]), 5)
    claims = doubt.people_claims([(small(), {"one": four_of_five, "other": four_of_five}, wrong)])
    assert [claim.of.partition(",")[0] for claim in claims] == ["one", "one", "other", "other"]
    expected = [beyond_chance(four_of_five, wrong)[0], 100 * 4 / 5 - 50]
    assert [claim.effect for claim in claims[:2]] == pytest.approx(expected, rel=1e-6)
    assert doubt.people_claims([]) == []


def test_what_cannot_be_is_refused(small, store):
    with pytest.raises(UsageError, match="folds = 1 is out of range: expected from 2 to 60; the nearest is 2"):
        fold_runs(small(), 1)
    with pytest.raises(UsageError, match="labels = 'hard' is not known"):
        refined_labels(small(labels="hard"))
    with pytest.raises(Damaged):
        refined_labels(small())
    with pytest.raises(UsageError, match="has no checkpoint"):
        left_out(fold_runs(small(), 2))


def test_the_notebook_without_planted_errors_and_without_weights(store, capsys):
    notebook = ROOT / "notebooks" / "10_mislabelled.ipynb"
    tiny = dict(epochs=1, train_size=60, val_size=20, test_size=20, noise_rate=0.0)
    text = execute(notebook, **tiny, folds=2)
    assert "seed 0: 60 training images, 0 with a wrong label; 2 folds" in text
    assert "the two rankings agree" in text and "wrong labels are found" not in text  # nobody knows which are wrong
    assert len(list((store / "runs" / "figures").glob("10_mislabelled_digits_mini_*_2_folds.png"))) == 1
    planted = tiny | dict(noise_rate=0.5)
    text = execute(notebook, **planted, folds=2, seeds=2)
    assert "rankings of 2 of 2 seeds; digits, 60 training labels" in text and "wrong labels are found" in text
    assert "seed 1: 60 training images" in text and len(list((store / "runs" / "figures").glob("*precision*.png"))) == 1
    text = execute(notebook, **tiny, folds=3, train=False)
    assert text.count("\ndigits-standard-hard-s0-") == 3 and "missing: digits-standard-hard-s0" in text
    assert "rankings of 0 of 1 seeds" in text and "No claim can be judged" in text
    assert capsys.readouterr().err == ""
