"""The registry of claims: complete, and judged from committed results alone."""

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from test_tables import result

from sglrlib.__main__ import main
from sglrlib.paths import CLAIMS, ROOT
from sglrlib.recipes import recipe, row_recipe, swept
from sglrlib.store.results import pack_shares, publish
from sglrlib.studies import published, readme, registry, separability
from sglrlib.studies.refinement import drop_claims


@pytest.fixture
def kept(store, monkeypatch):
    """An empty place for committed results and what is made from them, as the registry sees it."""
    place = store / "committed"
    place.mkdir()
    for module in ("store.results", "studies.doubt", "studies.published", "studies.separability"):
        monkeypatch.setattr(f"sglrlib.{module}.RESULTS", place)
    monkeypatch.setattr(registry, "VERDICTS", place / "claims.csv")
    return place


def commit(seeds=3, best=40):
    """Runs of PGD-AT that overfit by 10 points, and refined ones that do not, for so many seeds."""
    for seed in range(seeds):
        publish(result("hard", 800 + 5 * seed, 700 + 5 * seed, 120, 20, seed=seed))
        refined = result("self_guided", 800 + 5 * seed, 795 + 5 * seed, 15, 10, seed=seed)
        publish(dataclasses.replace(refined, best_epoch=best))


def found():
    return {(claim.id, claim.of): claim for _, claim in registry.judge_all()}


def test_every_claim_stands_once_and_names_a_notebook():
    rows = list(csv.DictReader(CLAIMS.read_text().splitlines()))
    ids = [row["id"] for row in rows]
    assert len(ids) == len(set(ids)) > 30
    for row in rows:
        assert row["claim"] and row["where"] and row["decided by"]
        assert len(list((ROOT / "notebooks").glob(f"{row['notebook']}_*.ipynb"))) == 1


def test_adversarial_training_on_peoples_labels_is_judged_apart(kept):
    for seed in range(3):
        for labels, last in (("hard", 700), ("self_guided", 790)):
            people = dict(dataset="cifar10", scale="small", noise="human_worst", noise_rate=1.0)
            publish(result(labels, 800, last, 810 - last, 10, seed=seed, **people))
    claims = found()
    assert claims["overfits", "PGD-20, best - last, people's labels, worst"].word == "holds"
    assert claims["robust", "PGD-20, last epoch, people's labels, worst"].effect == pytest.approx(9)
    assert all(of.endswith(", people's labels, worst") for _, of in claims)


def test_spoilt_images_are_held_against_wrong_labels_without_any_attack_too(kept):
    light = dict(swept("small"), dataset="cifar10", scale="small", method="standard", noise_rate=0.4)
    for seed in range(3):
        publish(result("hard", 800, 700, 110, 10, seed=seed, noise="symmetric", **light))
        publish(result("hard", 700, 695, 15, 10, seed=seed, noise="shuffled_pixels", **light))
    (claim,) = registry.kinds_of_noise(published.rows_at("cifar10", "small"), "cifar10", "small")
    assert (claim.id, claim.of) == ("other_noise", "Natural, best - last, wrong labels against shuffled pixels")
    assert claim.word == "holds" and claim.effect == pytest.approx(9.5)


def test_three_seeds_are_a_verdict_and_fewer_are_not(kept):
    commit(2)
    assert not {claim.word for claim in found().values()} & {"holds", "does not hold", "open"}
    commit(3)
    claims = found()
    assert claims["overfits", "PGD-20, best - last"].word == "holds"
    assert claims["spared", "PGD-20, best - last"].effect == pytest.approx(9.5)
    assert claims["robust", "PGD-20, best epoch"].word == "open" and claims["natural", "Natural, last epoch"].seeds == 3


def test_a_best_network_from_before_refinement_tells_nothing_of_it(kept):
    commit(3, best=18)
    assert found()["robust", "PGD-20, best epoch"].word == "open"  # refinement starts in epoch 18
    commit(3, best=17)
    claim = found()["robust", "PGD-20, best epoch"]
    assert claim.word == "cannot be judged here"
    assert claim.reason == "refinement starts after the best epoch in 3 of 3 seeds"
    assert found()["robust", "PGD-20, last epoch"].word == "holds"


def test_what_is_on_this_machine_alone_is_no_evidence(kept, store):
    commit()
    (kept / f"{row_recipe('PGD-AT+SGLR', seed=2).id}.json").rename(store / "elsewhere.json")
    assert found()["spared", "PGD-20, best - last"].seeds == 2


def test_a_stage_that_cannot_carry_a_claim_says_so(kept):
    confidences = {("last", "natural"): 0.9, ("best", "pgd_10"): 0.6, ("last", "pgd_10"): 0.9}
    for labels in ("hard", "self_guided"):
        run = result(labels, 800, 700, 120, 20)
        for which in ("best", "last"):
            for attack in ("natural", "pgd_10", "square_500"):
                level = confidences.get((which, attack), 0.7)
                shares = pack_shares(torch.full((1000,), level))
                flags = torch.arange(1000) < 600
                run = run.with_flags(which, f"confidence {attack}", flags, highest=shares, labelled=shares)
        publish(run)
    worsens = found()["calibration_worsens", "ECE under PGD-10"]
    assert worsens.word == "cannot be judged here" and "planted wrong labels" in worsens.reason


def test_kept_embeddings_are_judged_at_their_noise_rate(kept):
    light = swept()
    for seed in range(3):
        for labels, silhouette in (("hard", 0.1), ("self_guided", 0.2 + seed / 100)):
            for rate in (0.0, 0.6):
                config = recipe(**light, method="standard", labels=labels, noise_rate=rate, seed=seed)
                y, flat = np.arange(40) % 10, np.zeros((40, 2))
                separability.keep(separability.Embedding(config, y, flat, np.full(40, silhouette), flat[:, 0]))
    claims = {claim.of: claim.word for claim in registry.judge("digits", "mini")}
    at = "against hard labels, 60% noise"
    assert claims == {f"silhouette, {at}": "holds", f"neighbours of the class, {at}": "open"}


def test_every_claim_of_the_studies_is_in_the_registry(kept):
    """A name that data/claims.csv does not know ends in an error, not in a row without the paper's words."""
    commit()
    known = set(registry.known().index)
    assert {name for name, _ in found()} <= known
    ids = {"overfits", "spared", "robust", "natural"}
    assert {prefix + name for prefix in ("", "trades_") for name in ids} <= known


def test_the_command_writes_the_verdicts_and_the_readme(kept, store, monkeypatch, capsys):
    commit()
    registry.VERDICTS.write_text(registry.text())
    page = store / "README.md"
    marks = [f"<!-- {name} -->\n\n<!-- end of {name} -->" for name in readme.parts()]
    page.write_text("above\n" + "\n".join(marks) + "\nbelow\n")
    monkeypatch.setattr(readme, "PAGES", [page])
    (first,) = [path for path in readme.NOTEBOOKS if path.stem == "01_train_sglr"]
    monkeypatch.setattr(readme, "NOTEBOOKS", [Path(shutil.copy(first, store))])
    assert main(["claims"]) == 0
    written = page.read_text()
    assert main(["claims"]) == 0 and page.read_text() == written  # a second call changes nothing
    assert "| holds | [01](../notebooks/01_train_sglr.ipynb) |" in written and written.endswith("below\n")
    assert "PGD-AT 80.5 ± 0.5 -> 70.5 ± 0.5" in written and written.count("<!-- claims -->") == 1
    assert "overfits,digits," in registry.VERDICTS.read_text()
    head = "".join(json.loads((store / first.name).read_text())["cells"][0]["source"])
    assert "on digits (seeds: 3)" in head and "CIFAR-10 small" not in head
    assert "- PGD-AT loses robust accuracy after its best epoch: *holds*" in head
    assert "| – | [03](../notebooks/03_noise_rate_sweep.ipynb) |" in capsys.readouterr().out
    page.write_text("no place for anything")
    with pytest.raises(ValueError, match="has 0 places for 'claims': expected one"):
        readme.filled(page.read_text(), "claims", "", page)


def test_a_claim_with_two_verdicts_says_what_each_is_of(kept):
    row = dict.fromkeys(registry.COLUMNS, "") | {"id": "spared", "scale": "digits", "seeds": 3, "claim": "it is less"}
    rows = [
        row | {"measured by": of, "verdict": word, "effect (95 %)": "+1 (0 to 2)"}
        for of, word in (("PGD-20", "holds"), ("AutoAttack", "open"))
    ]
    pd.DataFrame(rows).to_csv(registry.VERDICTS, index=False)
    said = readme.came_out("01")
    verdicts = "*holds* in 1 of 2 measurements (PGD-20: +1, 0 to 2), *open* in 1 (AutoAttack: +1, 0 to 2)"
    assert f"\n- It is less: {verdicts}\n" in said


def test_of_many_measurements_the_range_is_said_and_of_too_few_seeds_no_effect(kept):
    row = dict.fromkeys(registry.COLUMNS, "") | {"id": "spared", "scale": "digits", "claim": "it is less"}
    rows = [
        row | {"measured by": f"PGD-{size}", "verdict": word, "effect (95 %)": f"+{size} points (0 to 20)", "seeds": n}
        for word, n, sizes in (("holds", 3, (7, 11, 9)), ("seen in this run", 1, (5, 6)))
        for size in sizes
    ]
    pd.DataFrame(rows).to_csv(registry.VERDICTS, index=False)
    said = readme.came_out("01")
    verdicts = "*holds* in 3 of 5 measurements (effects from +7 points to +11 points), *seen in this run* in 2"
    assert f"\n- It is less: {verdicts}\n" in said


def test_a_notebook_shows_its_own_claims(kept):
    commit()
    registry.VERDICTS.write_text(registry.text())
    table = registry.of_notebook("01")
    assert set(table.index.get_level_values("scale")) == {"digits"}
    assert list(table.verdict) == ["**holds**", "**holds**"] and "AT suffers" in table.index[0][0]
    assert registry.of_notebook("03").empty


def test_one_kind_that_overfits_answers_no_question_about_others():
    """Nor is that a kind overfits counted beside the comparisons: it is not what the paper says of it."""
    runs = {"eps = 8/255": [result("hard", 800, 700, 120, 20)], "eps = 2/255": [result("hard", 800, 795, 15, 10)]}
    assert drop_claims("weak_attacks", dict([*runs.items()][:1]), "eps = 8/255") == []
    (claim,) = drop_claims("weak_attacks", runs, "eps = 8/255")
    assert claim.text == "more robust accuracy is lost with eps = 8/255 than with eps = 2/255"
    assert claim.effect == pytest.approx(9.5)


def test_many_effects_are_said_by_their_range():
    rows = [{"effect (95 %)": f"{k:+.1f} points (0.0 to 9.0)", "measured by": f"rate {k}"} for k in (3, -1, 2, 5)]
    assert readme.effects(pd.DataFrame(rows)) == "effects from -1.0 points to +5.0 points"
    assert readme.effects(pd.DataFrame(rows[:1])) == "rate 3: +3.0 points, 0.0 to 9.0"


def test_the_largest_scale_is_that_which_has_something_for_every_label():
    held = dict(paper=dict(a=[1], b=[]), small=dict(a=[2], b=[3]), mini=dict(a=[4], b=[5]))
    assert published.largest(lambda dataset, scale: held[scale]) == held["small"]
    assert published.largest(lambda dataset, scale: dict(a=[], b=[1])) == {}
