"""make gpu on the fake GPU: its parts one after the other, what it does with a failure, and the page it ends in."""

import json

import pytest
from fakegpu import fake_gpu

from benchmarks import gpu
from benchmarks.report import PREDICTED
from sglrlib.checks import UsageError
from sglrlib.recipes import row_recipe

TINY = dict(
    train_size=43, val_size=10, test_size=20, train_eval_size=10, eval_steps=1, attack_steps=1, arch="bn_cnn4",
    batch_size=8, epochs=2, diagnostics=(),
)  # fmt: skip


@pytest.fixture
def reduced(monkeypatch):
    """Tiny runs on digits in place of CIFAR-10, no child processes, and what a benchmark would measure."""
    made, measured = [], dict(network="resnet18", batch=128, threads=1, what="step, fp32, against release", median=2.0)
    measured |= dict(min=1.9, max=2.1, rounds=5, bar=1.15, met=True, seconds=0.1)

    def part(name, found):
        def make():
            made.append(name)
            return found

        return make

    ladder = [dict(rung=rung, median=1.0, min=1.0, max=1.0, rounds=5, seconds=0.1) for rung in PREDICTED["cuda"]]
    benchmark = dict(gate=part("gate", {}), training=part("training", dict(rows=[measured], ladder=ladder)))
    monkeypatch.setattr(gpu.speed, "parts", lambda *_, **__: benchmark)
    monkeypatch.setattr(gpu, "cuda_tests", part("tests", dict(passed=39, skipped=0, failed=[])))
    rows = "PGD-AT", "PGD-AT+SGLR"
    monkeypatch.setattr(gpu, "configs", lambda epochs: made.append(epochs) or [row_recipe(r, **TINY) for r in rows])
    return made


def test_it_is_resumed_where_a_part_failed_and_ends_in_two_files(store, reduced, monkeypatch, capsys):
    with fake_gpu():
        with monkeypatch.context() as broken:
            broken.setattr(gpu, "short_runs", lambda configs, device: 1 / 0)
            assert gpu.main(["--out", str(store / "gpu"), "--minutes", "3"]) == 1
        assert "FAILED: runs: ZeroDivisionError" in (store / "gpu" / "fake-gpu.md").read_text()
        assert gpu.main(["--out", str(store / "gpu"), "--minutes", "3"]) == 0
    assert reduced == ["tests", "gate", "training", 1, 1]  # what was done is not done again
    found, page = json.loads((store / "gpu" / "fake-gpu.json").read_text()), (store / "gpu" / "fake-gpu.md").read_text()
    assert {*found} == {"card", "tests", "gate", "training", "runs"} and found["card"]["compute_capability"] == "9.0"
    assert [len(row["seconds"]) for row in found["runs"]["rows"]] == [2, 2]
    for said in (
        "In training a float32 convolution is made in TF32", "CUDA tests: 39 passed, 0 skipped, 0 failed.",
                 "| PGD-AT+SGLR | 2 |", "step, fp32, against release | 2.00 |"):  # fmt: skip
        assert said in page
    assert "FAILED" not in page and page in capsys.readouterr().out


@pytest.mark.parametrize(("minutes", "step", "epochs"), [(10, 0.1, 6), (1, 0.1, 1), (10, 1.0, 1), (60, 0.01, 10)])
def test_as_many_epochs_as_there_is_time_for(minutes, step, epochs):
    rows = [dict(network="resnet18", what="step, fp32, against release", seconds=step)]
    assert gpu.epochs_in(minutes, dict(training=dict(rows=rows))) == epochs


def test_it_is_the_papers_protocol_shortened():
    for config, row in zip(gpu.configs(4), ("PGD-AT", "PGD-AT+SGLR"), strict=True):
        assert config == row_recipe(row, "cifar10", "paper", epochs=4, refine_start=0.5)
    assert gpu.configs(4)[1].first_refined == 2
    assert gpu.configs(1)[1].first_refined == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "torch finds no CUDA device here"),
        (["--device", "cpu"], "expected a GPU"),
        (["--minutes", "-1"], "minutes"),
    ],
)
def test_without_a_card_it_says_so_at_once(store, monkeypatch, capsys, arguments, said):
    def none(device):
        raise UsageError("torch finds no CUDA device here")

    monkeypatch.setattr(gpu, "pick_device", none)
    assert gpu.main([*arguments, "--out", str(store / "gpu")]) == 2
    assert said in capsys.readouterr().err and not (store / "gpu").exists()
