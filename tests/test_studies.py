"""The tables, claims and rules that a single notebook is about, on made-up results whose answer is known."""

import dataclasses
import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sglrlib.checks import UsageError
from sglrlib.judging.diagnostics import features
from sglrlib.method.labels import LABELS, Hard
from sglrlib.recipes import RECORDED, recipe
from sglrlib.show import notebook, plots, style
from sglrlib.store.results import Result, pack, pack_shares, publish, stored
from sglrlib.studies import (
    ablation,
    black_box,
    calibration,
    calibration_figures,
    main_tables,
    noise_kinds,
    overfitting,
    phases,
    separability,
    sweep,
)  # fmt: skip
from sglrlib.training import jobs
from sglrlib.training.networks import load_model
from sglrlib.training.runs import run
from sglrlib.training.train import run_data


def result(curve, *, best=1, correct=(90, 80), n=100, confidences=(), **changes) -> Result:
    """A result with so many of n images correct at best and last, natural and under PGD-20."""
    config = recipe(**changes)
    flags = [torch.arange(n) < k for k in correct]
    evaluations = {
        which: {column: dict(flags=pack(f)) for column in ("natural", "pgd_20")}
        for which, f in zip(("best", "last"), flags, strict=True)
    }
    for (which, attack), (highest, right) in dict(confidences).items():
        shares = pack_shares(torch.full((n,), highest))
        entry = dict(flags=pack(torch.arange(n) < right), highest=shares, labelled=shares)
        evaluations[which][f"confidence {attack}"] = entry
    sizes = dict(train=1000, val=10, test=n, wrong_labels=round(900 * config.noise_rate))
    return Result(config, curve, best, sizes, evaluations, {})


def rows(norms, **columns):
    """A curve with a gradient norm and what else is given, one row an epoch."""
    columns = dict(batch_gradient_norm_hard=norms) | columns
    return [dict(epoch=i + 1, **{k: v[i] for k, v in columns.items()}) for i in range(len(norms))]


@pytest.mark.parametrize(
    ("norms", "start"),
    [
        ([5] * 2 + [1] * 8 + [2] * 10, 11),  # the first tenth does not count
        ([1] * 20, None),
        ([1] * 10 + [1.4] * 10, None),  # not by half
        ([1] * 5 + [9] + [1] * 14, None),  # one spike
        ([1] * 5 + [2] * 10 + [1] * 5, None),  # falls back
    ],
)
def test_growth_starts_where_the_norm_stays_above_one_and_a_half_times_its_lowest(norms, start):
    assert phases.growth_start(norms) == start
    stationary, growth = phases.stages(result(rows(norms)))
    assert (growth, stationary + growth) == (0 if start is None else 20 - start + 1, 18)


def seen(found) -> list[bool]:
    return [claim.word.startswith("seen") for claim in found]


def test_the_claims_on_the_two_schedules():
    up = dict(hessian_trace=[1.0] * 10 + list(range(10, 20)), hessian_trace_error=[0.1] * 20)
    rough = rows([1] * 10 + [2] * 10, test_robust=[50, 60] * 10, **up)
    smooth = rows([1] * 16 + [2] * 4, test_robust=[50 + i / 10 for i in range(20)], **up)
    said = {claim.id: claim for claim in phases.claims([result(rough)], [result(smooth)])}  # the rate drops in epoch 39
    assert [*said] == ["two_stages", "sharpness", "cosine_smoother", "cosine_overfits", "cosine_border"]
    assert seen(said.values()) == [False, True, True, True, True] and said["two_stages"].effect == 2 - 28
    near = [result(rough, lr_drops=(0.2, 0.9))]  # of the 60 epochs of the recipe: in epoch 12
    assert phases.claims(near, [])[0].effect == 2 - 1 and len(phases.claims(near, [])) == 2
    said = phases.claims([result(smooth)], [result(rough, correct=(80, 80))])
    assert seen(said) == [False, True, False, False, True]
    table = phases.table({"a": [result(rough)], "b": [result(smooth, seed=3)]})
    assert list(table["stages (epochs)"]) == ["8 + 10", "14 + 4"] and list(table.seed) == [0, 3]
    assert list(table["growth starts, x 1.25 / 1.5 / 2"]) == ["11 / 11 / –", "17 / 17 / –"]
    assert list(table.trace) == ["10 ± 0 -> 19 ± 0", "16 ± 0 -> 19 ± 0"]


def test_calibration_is_judged_from_the_kept_probabilities():
    overconfident = {("best", "pgd_10"): (0.6, 60), ("last", "pgd_10"): (0.95, 40), ("last", "natural"): (0.9, 90)}
    sober = {("best", "pgd_10"): (0.5, 60), ("last", "pgd_10"): (0.5, 62)}
    wild = [result([], confidences={("last", "natural"): (1.0, 50)}, method="standard")]
    hard, refined = [result([], confidences=overconfident)], [result([], confidences=sober, labels="self_guided")]
    said = calibration.claims(hard, refined, ["pgd_10"], wild)
    assert [claim.id for claim in said] == [
        "standard_calibration", "calibration_worsens", "calibration_spared", "calibration_spared", "less_confident",
        "under_confident",
    ]  # fmt: skip
    assert seen(said) == [True, True, True, False, True, True]
    assert [claim.effect for claim in said] == pytest.approx([0.5, 0.55, 0.43, -0.1, 100, 0.12], abs=1e-4)
    assert not any(seen(calibration.claims(refined, hard, ["pgd_10"])[-2:]))
    table = calibration.table({"PGD-AT": hard, "PGD-AT+SGLR": refined}, "pgd_10")["PGD-10, 100 images"]
    assert list(table.loc["PGD-AT", "ours, seeds: 1"]) == ["**0.000**", "0.550", "-0.550"]
    assert list(table.loc["PGD-AT", "confidence − accuracy"]) == ["+0.000", "+0.550", ""]
    assert list(table.loc["PGD-AT+SGLR", "paper"]) == ["**0.11***", "**0.10***", "0.01*"]


def test_calibrations_of_different_numbers_of_images_are_compared_on_those_that_all_have():
    wrong = {(which, "pgd_10"): (0.75, 0) for which in ("best", "last")}
    half = {(which, "pgd_10"): (0.5, 0) for which in ("best", "last")}
    hard = [result([], confidences=wrong, n=n, seed=seed) for seed, n in enumerate((100, 80))]
    refined = [result([], confidences=half, n=n, seed=seed, labels="self_guided") for seed, n in enumerate((60, 90))]
    spared = [claim for claim in calibration.claims(hard, refined, ["pgd_10"]) if claim.id == "calibration_spared"]
    assert [(claim.images, round(claim.effect, 3)) for claim in spared] == [(60, 0.25), (60, 0.25)]


def test_calibration_is_judged_from_the_curve_where_no_probabilities_are_kept():
    """The best epoch's row and the last one's; only the attack that the curve has, and on how many images is said."""
    columns = {f"test_{kind}_{what}": [0.1, 0.2, 0.4] for kind in ("natural", "robust") for what in ("ece", "gap")}
    lower = {name: [0.1, 0.1, 0.3] for name in columns}
    hard = [result(rows([1] * 3, **columns), best=2, seed=seed, attacked_size=30) for seed in range(3)]
    refined = [result(rows([1] * 3, **lower), best=2, labels="self_guided", seed=seed) for seed in range(3)]
    assert calibration.measured(hard[0], "natural") and calibration.measured(hard[0], "pgd_10")
    assert not calibration.measured(hard[0], "square_500") and not calibration.measured(hard[0], "pgd_20")
    said = calibration.claims(hard, refined, ["pgd_10"], hard)
    effects = {(claim.id, claim.of): claim.effect for claim in said}
    assert effects == pytest.approx({
        ("standard_calibration", "ECE without attack, last epoch, 100 images a seed"): 0,
        ("calibration_spared", "ECE without attack, last epoch, 100 images a seed"): 0.1,
        ("calibration_worsens", "ECE under PGD-10, 30 images a seed"): 0.2,
        ("calibration_spared", "ECE under PGD-10, last epoch, 30 images a seed"): 0.1,
        ("calibration_spared", "ECE under PGD-10, best epoch, 30 images a seed"): 0.1,
        ("under_confident", "accuracy - confidence, PGD-10, last epoch, 30 images a seed"): -0.3,
    })  # fmt: skip
    assert len(calibration.claims(hard, refined, ["pgd_10"])) == 5  # without standard training
    (early,) = [claim for claim in said if "best epoch" in claim.of]
    assert early.reason == "refinement starts after the best epoch in 3 of 3 seeds"  # nothing was refined yet
    natural, attacked = calibration.tables({"PGD-AT": hard})  # nothing is known of Square
    assert [*natural.columns.levels[0]] == ["Natural, 100 images"]
    table = attacked["PGD-10, 30 images"]
    assert list(table.loc["PGD-AT", "ours, seeds: 3"]) == ["0.200 ± 0.000", "0.400 ± 0.000", "-0.200 ± 0.000"]


def test_the_calibration_figures_say_how_many_images_they_are_of():
    confidences = {(which, attack): (0.95, 40) for which in ("best", "last") for attack in ("natural", "pgd_10")}
    columns = {f"test_{kind}_{what}": [0.1, 0.4] for kind in ("natural", "robust") for what in ("ece", "gap")}
    runs = {
        name: [result(rows([1] * 2, **columns), confidences=confidences, attacked_size=30, **how)]
        for name, how in (("Standard", dict(method="standard")), ("PGD-AT", {}))
    }
    drawn = calibration_figures.over_epochs(runs)
    assert "ECE under PGD-10 goes, for PGD-AT from 0.10 to 0.40" in " ".join(drawn.get_suptitle().split())
    small = " ".join(drawn.get_supxlabel().split())
    assert "100 test images, under PGD-10 the first 30;" in small and "is not drawn: its ECE ends at 0.40" in small
    assert len(drawn.axes[0].texts) > len(drawn.axes[2].texts) and "Table B.1" not in small  # that is of CIFAR-10
    assert drawn.axes[0].get_ylim() == drawn.axes[1].get_ylim() and drawn.axes[2].get_ylim() == drawn.axes[3].get_ylim()
    drawn = calibration_figures.density(runs, ["natural", "pgd_10"])
    assert drawn.get_suptitle() == "Probability of the label above 0.9, no attack: PGD-AT on 100% of the images"
    assert "100 test images in each panel" in " ".join(drawn.get_supxlabel().split())
    assert 0.9 in drawn.axes[0].patches[0].get_data().edges  # so that the headline can be read off
    drawn = calibration_figures.diagrams(runs, ["natural", "pgd_10"])
    assert "under PGD-10: Standard +0.55, PGD-AT +0.55" in drawn.get_suptitle()
    (seen,) = drawn.axes[1].collections[1].get_offsets()
    assert list(seen) == pytest.approx([0.95, 0.4], abs=1e-3)


def test_spoilt_images_are_asked_whether_accuracy_rises_from_the_first_epoch_at_a_lower_rate():
    """The rate drops in epochs 2 and 3 of 4, so it is epoch 2 that is compared with; wrong labels are not asked."""
    how = dict(epochs=4, lr_drops=(0.5, 0.75))
    planted = {
        label: [result(rows([1] * 4, test_robust=[50, 70, 80, last]), seed=seed, **how) for seed in range(3)]
        for label, last in (("Gaussian images", 66), ("random pixels", 71), ("no noise", 40), ("wrong labels", 40))
    }
    said = noise_kinds.rising_claims(planted)
    assert [(claim.effect, claim.word) for claim in said] == [(-4, "does not hold"), (1, "holds")]
    assert said[0].of == "robust test accuracy, last epoch - first one at a lower rate, Gaussian images"
    cosine = result(rows([1] * 4, test_robust=[50, 70, 80, 66]), epochs=4, schedule="cosine")
    assert not noise_kinds.rising_claims({"Gaussian images": [cosine]})


def swept(rule, rate, trained, error, wrong=None, **changes):
    """A run of the noise sweep that ends with a training accuracy, a test error, and some wrong labels memorised."""
    columns = dict(train_natural=[trained]) | (dict(train_natural_wrong=[wrong]) if wrong is not None else {})
    return result(rows([1], **columns), correct=(95, 100 - error), labels=rule, noise_rate=rate, **changes)


def test_the_noise_sweep_is_judged_at_each_rate():
    runs = [swept("hard", 0.4, 99, 40), swept("self_guided", 0.4, 80, 15), swept("hard", 0.0, 100, 5)]
    found = sweep.by_noise({"any": runs})
    assert list(found) == [("symmetric", 0.4), ("symmetric", 0.0)]
    assert sweep.portion_correct(runs[0]) == pytest.approx(64)
    said = sweep.claims(found)
    assert [claim.id for claim in said] == ["memorises", "narrows", "lower_error", "lower_error"]
    assert seen(said) == [True, True, True, False]  # alike at the best epoch
    found[("symmetric", 0.4)]["hard"] = [swept("hard", 0.4, 60, 15)]
    assert not any(seen(sweep.claims(found)))
    both = {rule: [swept(rule, 0.4, 99, 40, wrong=w)] for rule, w in (("hard", 100), ("self_guided", 7))}
    (spared,) = [claim for claim in sweep.claims({("symmetric", 0.4): both}) if claim.id == "not_memorised"]
    assert spared.effect == 93 and seen([spared]) == [True]


def test_the_order_of_the_label_rules_is_judged_without_wrong_labels_too():
    runs = [swept(rule, 0.4, 99, error) for rule, error in (("hard", 40), ("smooth", 50), ("self_guided", 15))]
    runs += [swept(rule, 0.0, 100, error) for rule, error in (("hard", 5), ("smooth", 2))]
    said = {(claim.id, claim.of): claim.effect for claim in sweep.claims(sweep.by_noise({"any": runs}))}
    assert said["below_smoothed", "40% of the labels drawn anew, Natural, last epoch"] == 35
    assert said["smoothed_below_hard", "40% of the labels drawn anew, Natural, last epoch"] == -10
    assert said["smoothed_below_hard", "no wrong labels, Natural, last epoch"] == 3
    assert not any("no wrong labels" in of for name, of in said if name != "smoothed_below_hard")


def test_the_table_of_the_noise_sweep_is_the_papers_with_the_lowest_error_of_each_kind_marked():
    hard, mine = [swept("hard", rate, 99, 40) for rate in (0.4, 0.2)], [swept("self_guided", 0.2, 80, 15)]
    table = sweep.table(sweep.by_noise({"any": hard + mine}))
    assert list(table.columns) == [("labels drawn anew", "40%"), ("labels drawn anew", "20%")]
    assert list(table.loc[("", "wrong training labels")]) == ["36 %", "18 %"]
    assert table.index.names == ["test error (%)", "seeds: 1"]
    last, paper, above = "last", "paper*", "train - test"
    assert list(table.loc[("hard labels", last)]) == ["**40.0**", "40.0"]  # alone at 40 %
    assert list(table.loc[("hard labels", paper)]) == ["–", "37.8"]
    assert list(table.loc[("hard labels", above)]) == ["39.0", "39.0"]
    refined = table.loc["self-guided labels"]
    assert [list(refined.loc[name]) for name in (last, paper, above)] == [
        ["–", "**15.0**"],
        ["–", "**33.8**"],
        ["–", "-5.0"],
    ]


def test_standard_training_is_described_without_an_attack():
    plain, attacked = (
        sweep.described([recipe(method=m, noise_rate=r) for r in (0.0, 0.4)]) for m in ("standard", "pgd_at")
    )
    assert "PGD" not in plain and "best epoch: highest natural accuracy" in plain and "planted" not in plain
    assert "eps" not in plain and "no training attack, fp32" in plain and "budget eps = 26/255" in attacked
    refined, both = (sweep.described([recipe(method=m, labels="self_guided")]) for m in ("standard", "pgd_at"))
    assert "lam" not in refined and "alpha = 0.9, initial" in refined and "lam = 0.2" in both
    assert "training attack PGD-7" in attacked and "best epoch: highest PGD-10" in attacked


def test_the_forest_says_what_ends_below_the_whole_method_and_what_cannot_be_told_from_it():
    ends = {ablation.WHOLE: 80, "α = 0": 80, "r = 0.5": 60}
    runs = {name: [result([], correct=(90, k), seed=seed) for seed in range(3)] for name, k in ends.items()}
    figure = ablation.forest(runs, ablation.WHOLE, "Equation 1")
    assert figure.get_suptitle() == ("Under PGD-20: r = 0.5 ends below the whole method; α = 0 cannot be told from it")
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["r = 0.5", ablation.WHOLE, "α = 0"]
    claims = ablation.claims(runs, {})
    assert [claim.of.split(":")[0] for claim in claims] == ["α = 0"] * 2 + ["r = 0.5"] * 2
    assert [claim.word for claim in claims if "r = 0.5" in claim.of] == ["holds"] * 2
    assert (
        ablation.label("lam", 1.0) == "λ = 1" and ablation.label("refine_start", 0.65) == "start at 65% of the epochs"
    )


def test_a_source_of_the_papers_is_compared_with_itself_and_another_with_the_next_one_free():
    assert black_box.stand_ins(["cnn24", "cnn32", "cnn40"]) == dict(cnn24="resnet34", cnn32="resnet50", cnn40="cnn40")
    assert black_box.stand_ins(["resnet50", "cnn8"]) == dict(resnet50="resnet50", cnn8="resnet34")
    columns = black_box.beside(["pgd_10 from cnn24 best 0a", "cw_inf from cnn24 best 0a", "pgd_10 from cnn32 best 0b"])
    assert list(columns.values()) == ["pgd_10 from resnet34", "cw_inf from resnet34", "pgd_10 from resnet50"]


def test_the_main_figure_says_how_far_refined_labels_end_above_hard_ones():
    runs = {
        "PGD-AT": [result([], correct=(80, 70))],
        "PGD-AT+SGLR": [result([], correct=(80, 66), labels="self_guided")],
    }
    figure = main_tables.trade_off(runs, "pgd_20", "Table B.4")
    assert figure.get_suptitle() == "Under PGD-20, PGD-AT+SGLR ends 4.0 points below PGD-AT"
    wide = 2 * max(main_tables.half_width(those, "best", "natural") for those in runs.values())
    low, high = main_tables.interval(runs["PGD-AT"], "best", "natural")
    assert wide == pytest.approx(high - low)
    assert f"At the best epochs intervals of up to ± {wide / 2:.1f} points (Natural)" in " ".join(
        figure.get_supxlabel().split()
    )
    more = main_tables.message(runs | {"AWP": runs["PGD-AT"], "TRADES": [result([], correct=(80, 68))]}, "pgd_20")
    assert more.endswith("PGD-AT; all 2 other methods end within its interval")
    names = [text for text in figure.axes[0].texts if text.get_text()]
    boxes = [text.get_window_extent() for text in names]
    assert {text.get_text() for text in names} == set(runs) and not boxes[0].overlaps(boxes[1])


def test_overfitting_claims_compare_the_rules_that_are_there():
    columns = dict(train_robust=[50] * 20, test_robust=[40] * 20, batch_gradient_norm_own=[1] * 20, iiw_code=[1] * 20)
    grown = rows([1] * 10 + list(range(2, 12)), iiw_paper=[i**2 for i in range(1, 21)], **columns)
    flat = rows([1] * 20, iiw_paper=[1] * 20, **columns)
    drops = dict(lr_drops=(0.18, 0.9))  # of the recipe's 60 epochs: the rate drops in epoch 11
    hard = [result(grown, correct=(90, 60), **drops)]
    others = {"PGD-AT+SGLR": [result(flat, correct=(90, 89), labels="self_guided", **drops)]}
    others["PGD-AT+LS"] = [result(flat, correct=(90, 40), labels="smooth", **drops)]
    said = {claim.id: claim for claim in overfitting.claims(hard, others)}
    assert [*said] == [
        "iiw_follows_norm", "norm_grows", "smaller_norm", "less_information", "iiw_marks_overfitting",
    ]  # fmt: skip
    assert [claim.id for claim in overfitting.claims(hard, {})] == ["iiw_follows_norm"]
    assert said["norm_grows"].effect == pytest.approx(math.log(11)) and seen(said.values())[1:4] == [True] * 3
    # drops of 30, 1 and 50 points with an IIW of 400, 1 and 1
    assert said["iiw_marks_overfitting"].effect == pytest.approx(0, abs=0.01)


def test_two_curves_that_both_rise_do_not_change_alike_for_that():
    """Finding: rho of the values is 1, that of their changes from epoch to epoch is not."""
    up = [10.0 * i + (i % 2) for i in range(20)]
    against = [10.0 * i - (i % 2) for i in range(20)]
    assert overfitting.correlation(result(rows(up, iiw_paper=up))) == pytest.approx(1)
    assert overfitting.correlation(result(rows(up, iiw_paper=against))) == pytest.approx(-1)


def test_the_generalisation_gap_and_iiw_are_tabled():
    columns = dict(train_robust=[50] * 20, test_robust=[40] * 20, batch_gradient_norm_own=[1] * 20, iiw_code=[1] * 20)
    grown = rows([1] * 10 + list(range(2, 12)), iiw_paper=list(range(20)), **columns)
    hard = [result(grown, correct=(90, 60))]
    table = overfitting.table({"PGD-AT": hard})
    assert list(table["gap (points)"]) == ["10.0 -> 10.0"] and list(table["IIW, formula"]) == ["0 -> 19"]
    for changes, batches in ((dict(), 4), (dict(attacked_size=30), 1), (dict(train_eval_size=2000), 6)):
        table = overfitting.table({"PGD-AT": [result(grown, **changes)]})  # 1,000 images in batches of 50
        assert list(table[f"IIW, code x 1,000 ({batches} batches)"]) == ["1000.0 -> 1000.0"]


def test_separability_is_a_number(store, small):
    config = small(labels="hard")
    run(config, (), say=lambda text: None)
    e = separability.embed(config, 40)
    assert e.plane.shape == (40, 2) and e.silhouette.shape == e.agreement.shape == (40,)
    assert ((0 <= e.agreement) & (e.agreement <= 1)).all() and (abs(e.silhouette) <= 1).all()
    test = run_data(config).test
    found = features(load_model(config, "last"), test.x())
    far = torch.cdist(found, found).fill_diagonal_(torch.inf)
    nearest = test.y_clean[far.argsort(1)[:, : separability.NEIGHBOURS]]
    assert e.agreement == pytest.approx((nearest == test.y_clean[:, None]).double().mean(1).numpy())
    better = dataclasses.replace(
        e, config=small(), silhouette=e.silhouette + 0.5 + 0.01 * np.arange(40), agreement=e.agreement
    )
    said = separability.claims([e, better])
    at = f"against hard labels, {config.noise_rate:.0%} noise"
    assert [claim.of for claim in said] == [f"silhouette, {at}", f"neighbours of the class, {at}"]
    assert seen(said) == [True, False]
    assert list(separability.table([e, better]).n) == ["40 x 1", "40 x 1"]
    with pytest.raises(UsageError, match="run\\(\\) it first"):
        separability.embed(small(seed=5), 40)


def embedding(labels="hard", silhouette=0.1, agreement=0.5, classes=10, dataset="cifar10", **changes):
    """Twenty images of each class in two heaps of the plane, with the same two numbers for each image."""
    y = np.repeat(np.arange(classes), 20)
    n, plane = len(y), np.stack([y % 2 + 0.01 * np.arange(len(y)) % 0.2, y % 3], 1)
    config = recipe(dataset, "small" if dataset == "cifar10" else "", labels=labels, **changes)
    return separability.Embedding(config, y, plane, np.full(n, silhouette), np.full(n, agreement))


def test_an_embedding_is_kept_small_and_comes_back_rounded(tmp_path, monkeypatch):
    monkeypatch.setattr("sglrlib.studies.separability.RESULTS", tmp_path)
    e = embedding(silhouette=0.12345, agreement=0.7)
    assert separability.kept(e.config) is None
    assert separability.keep(e).relative_to(tmp_path).as_posix() == f"tsne/{e.config.id}.json"
    again = separability.kept(e.config)
    assert again.config == e.config and (again.y == e.y).all() and again.plane == pytest.approx(e.plane, abs=0.051)
    assert set(again.silhouette) == {0.123} and set(again.agreement) == {0.7}


def test_embeddings_are_compared_within_a_method_and_a_noise_rate():
    those = [embedding(seed=seed) for seed in range(3)] + [embedding("self_guided", 0.2, seed=seed) for seed in (1, 2)]
    those += [embedding("smooth", noise_rate=0.6), embedding("self_guided", noise_rate=0.6, method="standard")]
    said = separability.claims(those)
    assert {claim.of.split("against ")[1] for claim in said} == {"hard labels, PGD-AT without planted noise"}
    assert [(claim.effect, claim.seeds) for claim in said] == [(pytest.approx(10), 2), (0, 2)]
    table = separability.table(those[:5])
    assert list(table["silhouette"]) == ["0.10 ± 0.00", "0.20 ± 0.00"] and list(table.n) == ["200 x 3", "200 x 2"]


def test_the_classes_have_their_names_which_do_not_overlap():
    drawn = separability.figure([embedding(), embedding("self_guided", agreement=0.8)])
    assert " ".join(drawn.get_suptitle().split()).endswith("50% with hard labels, 80% with self-guided labels")
    assert "Chance: silhouette 0, neighbours 10%" in " ".join(drawn.get_supxlabel().split())
    drawn.canvas.draw()
    for axis in drawn.axes:
        assert {"plane", "truck"} < {text.get_text() for text in axis.texts} and len(axis.texts) == 10
        boxes = [text.get_window_extent() for text in axis.texts]
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert not list(separability.figure([embedding(classes=12, dataset="digits")]).axes[0].texts)  # too many to name


def test_standard_training_is_not_said_to_be_attacked():
    plain, attacked = recipe("digits", method="standard"), recipe("digits")
    said = notebook.describe([plain])
    assert (
        "no training attack, fp32" in said and "PGD" not in said and "best epoch: highest natural accuracy on" in said
    )
    said = notebook.describe([attacked])
    assert "training attack PGD-7, step 6.5/255, fp32" in said and "best epoch: highest PGD-10 accuracy on" in said
    said = notebook.describe([plain, attacked])
    assert "training attack PGD-7, step 6.5/255 (PGD-AT), fp32" in said
    assert "best epoch: highest natural accuracy (Standard) or PGD-10 accuracy (PGD-AT) on" in said


def test_rules_of_a_notebook_are_those_of_the_registry(monkeypatch):
    assert notebook.rules("") == ["hard", "smooth", "self_guided"] and notebook.rules("all") == list(LABELS)
    with pytest.raises(UsageError, match=r"labels = 'smoth' is not known. Did you mean 'smooth'"):
        notebook.rules("hard, smoth")
    monkeypatch.delitem(LABELS, "smooth")
    monkeypatch.setitem(LABELS, "toy", Hard)
    assert notebook.rules("") == ["hard", "self_guided"] and "toy" in notebook.rules("all")


def test_runs_come_back_under_their_labels_and_missing_ones_are_left_out(store, small, capsys):
    own = SimpleNamespace(train=True, device="cpu", speed="fast", publish=False)
    tiny = dict(epochs=1, attack_steps=1)
    groups = {"a": [small(**tiny), small(**tiny, seed=1)], "b": [small(**tiny, seed=1)]}
    notebook.gather(dict(b=groups["b"]), own)
    own.train = False
    found = notebook.gather(groups | {"c": [small(seed=9)]}, own)
    assert [[run.config.seed for run in found[label]] for label in found] == [[1], [1]] and list(found) == ["a", "b"]
    assert capsys.readouterr().out.count("missing: digits-pgd_at-self_guided-s") == 2
    with pytest.raises(UsageError, match="is not known"):
        notebook.gather(groups, own, ["pdg_20"])


def test_several_runs_share_the_cores_and_end_as_one_after_another(store, small, monkeypatch, capsys):
    own = SimpleNamespace(train=True, device="cpu", speed="fast", publish=False)
    configs = [small(epochs=1, seed=seed) for seed in (0, 1, 2)]
    inline = notebook.gather(notebook.by_title(configs[:1]), own)
    pool = ThreadPoolExecutor(1)  # a thread's random numbers are all threads'
    monkeypatch.setattr(jobs.joblib, "cpu_count", lambda: 2)
    monkeypatch.setattr(notebook.loky, "get_reusable_executor", lambda n, **_: pool)
    monkeypatch.setattr(jobs, "end_with", lambda parent: None)
    found = notebook.gather(notebook.by_title(configs), own)[configs[0].title]
    assert [run.config.seed for run in found] == [0, 1, 2] and found[0] == inline[configs[0].title][0]
    assert "2 of 2 after" in capsys.readouterr().out  # the first is there already, the others are done side by side


def test_curves_may_be_differences_and_colours_are_those_of_the_methods():
    assert plots.value(dict(a=3, b=1), "a - b") == 2 and plots.value(dict(a=3), "a") == 3
    labels = ["PGD-AT", "PGD-AT, cosine", "PGD-AT, other", "eps = 2/255", "eps = 4/255"]
    assert len({style.colour_of(label, labels) for label in labels}) == len(labels)
    assert style.colour_of("PGD-AT", ["TRADES", "PGD-AT"]) == style.COLOURS["PGD-AT"]


@pytest.mark.parametrize(("errors", "said"), [([0.5] * 20, "trace, ± s.e."), (None, "trace")])
def test_the_standard_error_is_drawn_where_the_curve_has_it(errors, said):
    columns = dict(hessian_trace=[3.0] * 20) | (dict(hessian_trace_error=errors) if errors else {})
    runs = {"PGD-AT": [result(rows([1] * 20, **columns))]}
    (axis,) = plots.over_epochs(runs, dict(trace=dict(hessian_trace="-")), {}, message="").axes
    assert axis.get_ylabel() == said
    heights = [set(band.get_paths()[0].vertices[:, 1]) for band in axis.collections]
    assert heights == ([{2.5, 3.5}] if errors else [])


def test_the_small_print_says_where_seeds_are_missing_and_marks_do_not_overlap():
    runs = {"PGD-AT": [result(rows([1] * 40), labels="hard")] * 3, "PGD-AT+SGLR": [result(rows([1] * 40))]}
    drawn = plots.over_epochs(runs, dict(norm=dict(batch_gradient_norm_hard="-")), {}, message="")
    assert "Seeds: PGD-AT 3, PGD-AT+SGLR 1." in drawn.get_supxlabel()
    figure, ((axis,),) = style.grid(1, 1, 2.0)
    axis.set_xlim(0, 60)
    plots.mark_phases(axis, recipe("digits", labels="self_guided", lr_drops=(0.25, 0.75), refine_start=0.225))
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in axis.texts]
    assert len(boxes) == 3 and not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def test_what_is_recorded_is_in_the_curve(store, small):
    curve = run(small(attacked_size=20, train_eval_size=20, diagnostics=RECORDED), (), say=lambda text: None).curve
    for column in ("test_robust_ece", "gradient_norm_own", "hessian_trace_error", "iiw_code"):
        assert all(math.isfinite(row[column]) for row in curve)


def test_publishing_keeps_the_columns_that_are_committed_already(store):
    publish(result([], confidences={("best", "natural"): (0.5, 1), ("last", "natural"): (0.5, 1)}))
    publish(result([], correct=(70, 60)))
    kept = stored(result([]).config, committed=True)
    assert kept.accuracy("last", "pgd_20") == 60 and kept.has("confidence natural")


def test_figures_are_kept_only_if_they_are_published(store):
    figure, _ = style.grid(1, 1, 2.0)
    assert style.save(figure, "a") == "runs/figures/a.png" and not (store / "figures").exists()
    assert style.save(figure, "a", publish=True) == "figures/a.png"
    assert {p.relative_to(store).as_posix() for p in store.rglob("a.pdf")} == {
        "runs/figures/a.pdf",
        "figures/a.pdf",
    }


def test_lists_of_names_have_a_bound():
    assert notebook.names_in("a, b,") == ["a", "b"]
    with pytest.raises(UsageError, match="how many names = 1001 is out of range"):
        notebook.names_in("a," * 1001)
