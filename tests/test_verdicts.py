"""Whether a claim holds: the statistics against simulation and against hand-made results."""

import math

import pytest
import torch
from scipy.stats import t as student
from test_tables import result

from sglrlib.checks import UsageError
from sglrlib.show.verdicts import SEEDS, Claim, holm, interval, judged, note, table
from sglrlib.studies.refinement import claims, gap_claims, masking_claims, rival_claims


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(
    ("of_seed", "of_image", "rest"),  # standard deviations; 500 images
    [(0, 0.3, 1), (0.05, 0.3, 1), (0.2, 0.3, 1), (0, 1, 0.3), (0.03, 0, 1)],
)
def test_a_claim_that_is_not_so_is_called_in_five_of_a_hundred_tries(seeds, of_seed, of_image, rest):
    """5 % ± 1, and the error of 1,000 tries; less where the images' part is about as large as the seeds'."""
    generator, tries = torch.Generator().manual_seed(seeds), 1000

    def drawn(*shape):
        return torch.randn(shape, generator=generator).double()

    called = 0
    for _ in range(tries):
        values = of_seed * drawn(seeds, 1) + of_image * drawn(1, 500) + rest * drawn(seeds, 500)
        called += judged("", "", "", list(values)).word != "open"
    assert 0.02 <= called / tries <= 0.06 + 2 * math.sqrt(0.05 * 0.95 / tries)


def test_the_same_images_for_all_seeds_are_not_so_many_images():
    """What an image adds to every seed alike does not average out over the seeds."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(200, generator=generator).double()
    values = [image + 0.01 * torch.randn(200, generator=generator).double() for _ in range(5)]
    shared, drawn = (judged("", "", "", values, shared=how) for how in (True, False))
    half = 1.96 * image.std().item() / math.sqrt(200)
    assert shared.high - shared.effect == pytest.approx(half, rel=0.02)
    assert drawn.high - drawn.effect < half / 50


def test_one_number_a_seed_is_students_t():
    values = [1.0, 2.0, 4.0, 2.5]
    found = judged("", "", "", values)
    mean, error = 2.375, torch.tensor(values).double().std().item() / 2
    assert found.effect == mean and found.images == 0 and found.seeds == 4
    assert found.high - mean == pytest.approx(student.ppf(0.975, 3) * error, rel=1e-3)
    assert found.p == pytest.approx(2 * student.sf(mean / error, 3), rel=1e-2)


def test_the_interval_is_the_one_that_the_verdict_uses():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(3, 400, generator=generator).double()
    for shift in torch.arange(-0.3, 0.3, 0.01):
        found = judged("", "", "", list(noise + shift))
        assert (found.low > 0) == (found.effect > 0 and found.p < 0.05) == (found.word == "holds")
        assert (found.high < 0) == (found.word == "does not hold")


def test_with_fewer_than_three_seeds_nothing_is_said_of_the_method():
    generator = torch.Generator().manual_seed(0)
    values = [0.5 + torch.randn(400, generator=generator).double() for _ in range(3)]
    found = [judged("", "", "", values[:n]).word for n in (1, 2, 3)]
    assert found == ["seen in this run", "seen in these runs", "holds"]
    assert judged("", "", "", [-v for v in values[:1]]).word == "not seen in this run"
    assert judged("", "", "", [torch.zeros(100)]).word == "not seen in this run"
    apart = [v + shift for v, shift in zip(values[:2], (0.5, 9.0), strict=True)]
    assert judged("", "", "", apart).word == "seen in these runs"  # of these two networks the images tell enough
    alone = judged("", "", "", [1.0])
    assert alone.word == "seen in this run" and math.isnan(alone.low)  # one number, and no error of zero
    assert "nan" not in table([alone]).to_string()
    assert judged("", "", "", [1.0], errors=[1.0]).word == "not seen in this run"
    assert judged("", "", "", [3.0], errors=[1.0]).word == "seen in this run"
    assert judged("", "", "", [1.0, 1.1, 0.9], errors=[9.0] * 3).word == "holds"  # the seeds tell
    with pytest.raises(UsageError, match="there is no run of it"):
        judged("", "a claim", "", [])


def test_holm_by_hand():
    def claim(p, seeds=3, reason=""):
        return Claim("", "", "", 1.0, 0.5, 1.5, p, 100, seeds, reason=reason)

    ps = [0.001, 0.04, 0.012, 0.02]  # held against 5 % / 4, / 3, / 2, / 1 in their order
    assert holm([claim(p) for p in ps]) == [True, True, True, True]
    assert holm([claim(p) for p in [0.001, 0.04, 0.02, 0.2]]) == [True, False, False, False]
    mixed = [claim(0.04), claim(0.0, seeds=1), claim(0.0, reason="at chance level")]
    assert holm(mixed) == [True, False, False]  # one seed, and what cannot be judged, are not of the family
    assert "1 claims on the method; after Holm's correction for their number 1 (*)" in note(mixed)
    assert note(mixed[1:2]).startswith("Fewer than three seeds")
    assert list(table(mixed).verdict) == ["holds *", "seen in this run", "cannot be judged here (at chance level)"]


def test_what_is_not_defined_is_not_judged():
    found = judged("", "", "", [0.5, math.nan, 0.7], unit="rho")
    assert (found.word, found.reason) == ("cannot be judged here", "not defined for these runs")


def test_nothing_estimated_is_nothing_claimed():
    assert interval(0.0, 0.0, 0.0, SEEDS) == (0.0, 0.0, 1.0)


def words(found):
    return [claim.word.removesuffix(" in this run") for claim in found]


def test_claims_come_out_as_the_numbers_do():
    overfits, kept = result("hard", 800, 700, 120, 20), result("self_guided", 800, 795, 15, 10)
    found = claims([overfits], [kept])
    assert [claim.id for claim in found] == ["overfits", "spared", "robust", "robust", "natural"]
    assert words(found) == ["seen", "seen", "seen", "not seen", "seen"]  # alike at the best epoch
    assert [claim.effect for claim in found] == pytest.approx([10, 9.5, 9.5, 0, 9.5])
    assert {(claim.images, claim.seeds) for claim in found} == {(1000, 1)}
    assert (
        words(claims([result("hard", 800, 800, 3, 3)], [result("self_guided", 800, 700, 120, 20)])) == ["not seen"] * 5
    )
    trades = [result(rule, 800, 800, 3, 3, method="trades") for rule in ("hard", "self_guided")]
    assert claims(trades[:1], trades[1:])[0].id == "trades_overfits"


def test_two_runs_are_compared_image_by_image():
    """12 images apart, all one way, is certain on the same images; 12 more right of others would not be."""
    same = claims([result("hard", 700, 700, 0, 0)], [result("self_guided", 712, 712, 0, 0)])
    other = claims([result("hard", 700, 700, 0, 0)], [result("self_guided", 900, 712, 188, 0)])
    assert words(same)[2] == "seen" and words(other)[2] == "not seen"


def test_a_seed_that_only_one_side_has_is_left_out():
    hard = [result("hard", 800, 700, 120, 20, seed=seed) for seed in (0, 1)]
    (refined,) = [result("self_guided", 800, 795, 15, 10, seed=1)]
    assert [claim.seeds for claim in claims(hard, [refined])] == [2, 1, 1, 1, 1]
    assert [claim.id for claim in claims(hard[:1], [refined])] == ["overfits"]
    assert gap_claims(hard[:1], [refined], ["pgd_20"]) == [] == rival_claims({"a": [refined], "b": hard[:1]})


def test_gaps_count_whatever_their_sign():
    """A gap of -10 points is no smaller than one of 1."""
    gained, steady = result("hard", 700, 800, 10, 110), result("self_guided", 800, 790, 12, 2)
    assert words(gap_claims([gained], [steady], ["pgd_20"])) == ["seen"]
    assert words(gap_claims([steady], [gained], ["pgd_20"])) == ["not seen"]


def test_a_network_that_only_masks_its_gradients_is_told():
    column = "pgd_10 from cnn24 best 0a1b2c3d4e"
    runs = {}
    for name, black in (("honest", 900), ("masked", 700)):
        runs[name] = result("self_guided", 800, 800, 0, 0, columns=("natural", "pgd_10"))
        for which in ("best", "last"):
            runs[name] = runs[name].with_flags(which, column, torch.arange(1000) < black)
    assert words(masking_claims([runs["honest"]], [column])) == ["seen", "seen"]
    assert words(masking_claims([runs["masked"]], [column])) == ["not seen", "not seen"]
    assert [c.of for c in masking_claims([runs["honest"]], [column])] == [
        f"PGD-10 from cnn24, {when} epoch" for when in ("best", "last")
    ]


def test_rules_are_held_against_the_refined_one():
    others = {
        "PGD-AT+SGLR": [result("self_guided", 800, 790, 10, 0)],
        "PGD-AT+LS": [result("smooth", 800, 700, 100, 0)],
    }
    (claim,) = rival_claims(others)
    assert claim.id == "ahead_of_smooth" and words([claim]) == ["seen"]
    assert claim.text == "PGD-AT+SGLR is more robust than PGD-AT+LS"
    assert rival_claims({}) == []
