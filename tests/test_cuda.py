"""The library on a GPU: on this machine's, or where it has none on fakegpu.py's, bit for bit as on the CPU there."""

import math
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from fakegpu import fake_gpu

from benchmarks import speed
from sglrlib.judging.diagnostics import DIAGNOSTICS
from sglrlib.judging.evaluate import correct
from sglrlib.method.attacks import PGD
from sglrlib.method.autoattack import Part
from sglrlib.method.fast import captured
from sglrlib.method.methods import METHODS
from sglrlib.method.models import build_model
from sglrlib.recipes import PAPER_ROWS, ROWS
from sglrlib.store import checkpoint
from sglrlib.training import cost
from sglrlib.training.measure import diagnose, look
from sglrlib.training.runs import run
from sglrlib.training.train import first_step, run_data, run_model, train

CARD = torch.cuda.is_available()
ARCH = "wrn10_1" if CARD else "bn_cnn4"  # of the tests that would take longest on the fake, which computes on the CPU
needs_card = pytest.mark.skipif(not CARD, reason="the fake GPU has no torch.compile and no debug mode of its own")


@pytest.fixture(autouse=True)
def gpu():
    with nullcontext() if CARD else fake_gpu():
        yield


@pytest.mark.filterwarnings("default")  # torch.compile's own
@pytest.mark.parametrize("precision", ["fp32", "bf16", "amp"])
@pytest.mark.parametrize("speed", ["plain", "fast", pytest.param("compile", marks=needs_card)])
def test_a_run_trains_and_resumes_on_cuda(small, tmp_path, speed, precision):
    config = small(arch="wrn10_1", augment="crop_flip", epochs=2, precision=precision, refine_start=0.0)
    train(config, tmp_path, device="cuda", speed=speed, report=lambda row: None)
    state = checkpoint.load(tmp_path / "last.pt", "cpu")
    assert len(state["curve"]) == 2 and state["labels"]["p"].isfinite().all()
    train(config, tmp_path, device="cpu", report=lambda row: None)  # a finished run has nothing left to do


def agree(found, expected, **tolerance):
    """Whether tensors are the same: bit for bit on the fake, whose kernels are the CPU's."""
    return torch.allclose(found, expected, **tolerance) if CARD else torch.equal(found, expected)


def steps_of(config, speed="fast"):
    """A step of config on CUDA and its training split."""
    data = run_data(config).to("cuda").train
    return first_step(config, data.y, speed=speed), data


def epochs_of(step, take, data, epochs):
    """The losses of some epochs, seeded as train() seeds them; every epoch ends in a smaller batch."""
    losses = []
    for epoch in range(1, epochs + 1):
        step.generator.manual_seed(epoch)
        step.start_epoch(epoch)
        losses += [take(*batch).clone() for batch in data.batches(step.config.batch_size, step.generator, "crop_flip")]
    return torch.stack(losses)


@pytest.mark.parametrize(
    "changes",
    [dict(), dict(labels="ensemble"), dict(labels="rectified"), dict(method="trades"), dict(awp=0.01)],
    ids=str,
)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "amp"])
def test_a_captured_step_loses_what_the_step_loses(small, changes, precision):
    config = small(arch=ARCH, batch_size=16, epochs=8, refine_start=0.5, lr=0.01, precision=precision, **changes)
    step, data = steps_of(config)
    expected = epochs_of(step, step, data, 8)
    step, data = steps_of(config)
    found = epochs_of(step, captured(step), data, 8)
    assert len(data) % 16 and agree(found, expected, rtol=0.02 if precision == "fp32" else 0.1)
    assert agree(found[:4], expected[:4], rtol=1e-3)


@pytest.mark.parametrize("arch", ["cnn8", "bn_cnn8", "wrn10_1"])
def test_fast_and_plain_steps_lose_the_same_on_cuda(small, arch):
    config = small(arch=arch, batch_size=16, epochs=2, refine_start=0.0, lr=0.01)
    losses = {
        speed: epochs_of(step, step, data, 2) for speed in ("plain", "fast") for step, data in [steps_of(config, speed)]
    }
    assert torch.allclose(losses["plain"][:4], losses["fast"][:4], rtol=1e-2)


@needs_card
def test_nothing_in_an_epoch_waits_for_the_device(small):
    step, data = steps_of(small(arch="wrn10_1", batch_size=16, refine_start=0.0))
    take = captured(step)
    epochs_of(step, take, data, 5)  # both batch sizes are captured by now
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in data.batches(16, step.generator, "crop_flip"):
            take(*batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_run_goes_on_from_cuda_to_cpu_and_back(small, tmp_path):
    config = small(arch="wrn10_1", epochs=3)

    class Enough(Exception):
        pass

    def stop(row):
        raise Enough

    for device in ("cuda", "cpu", "cuda"):
        with pytest.raises(Enough):
            train(config, tmp_path, device=device, report=stop)
    curve = checkpoint.load(tmp_path / "last.pt", "cpu")["curve"]
    assert [row["epoch"] for row in curve] == [1, 2, 3]
    assert [row["lr"] for row in curve] == [config.lr_at(epoch) for epoch in (1, 2, 3)]


def test_the_benchmarks_gate_is_passed_on_cuda():
    for arch in ("cnn16", "wrn10_1", "resnet18")[: 3 if CARD else 2]:  # the third would take half a minute
        speed.gate(speed.task(arch, "cuda", 8, images=16))


@pytest.mark.parametrize("how", ["plain", "fast"])
def test_a_rate_is_measured_on_cuda(small, how):
    found = cost.rate(small(arch="wrn10_1"), "cuda", how)
    assert 0 < found.training < 1e15 and 0 < found.judging < 1e15


def test_cuda_and_cpu_agree_on_the_first_epoch(small, tmp_path):
    config = small(arch="cnn4", epochs=1, attack_steps=0, eps_255=0, train_size=200)
    losses = []
    for device in ("cpu", "cuda"):
        train(config, tmp_path / device, device=device, report=lambda row: None)
        losses.append(torch.tensor(checkpoint.load(tmp_path / device / "last.pt", "cpu")["curve"][0]["loss"]))
    assert agree(*losses, rtol=0.05)  # the order of the batches differs by device


@pytest.mark.parametrize("row", PAPER_ROWS)
def test_every_row_of_the_tables_trains_and_is_judged_on_cuda(small, store, monkeypatch, row):
    monkeypatch.setattr("sglrlib.method.attacks.Part", partial(Part, iterations=5))
    config = small(**(ROWS[row] | dict(arch=ARCH, epochs=2, refine_start=0.0)))
    result = run(config, ["pgd_3", "autoattack"], device="cuda", say=lambda line: None)
    assert result.has("autoattack") and result.evaluations["best"]["autoattack"]["device"] != "cpu"


def test_attacks_on_cuda_leave_its_random_stream_alone_and_find_what_the_cpu_finds():
    model, x = build_model("cnn8", 10, (1, 8, 8)).eval(), torch.rand(50, 1, 8, 8)
    y = model(x).argmax(1)  # all right to begin with
    state = torch.cuda.get_rng_state()
    flags = {
        device: correct(model.to(device), x.to(device), y.to(device), PGD(0.05, 0.01, 10, start="none"))
        for device in ("cpu", "cuda")
    }
    correct(model, x.cuda(), y.cuda(), Part(0.05, "apgd_ce", 5))
    assert torch.equal(torch.cuda.get_rng_state(), state)
    assert (flags["cpu"] != flags["cuda"]).sum() <= CARD


def test_every_diagnostic_is_recorded_on_cuda_and_is_close_to_the_cpus(small):
    config = small(arch="bn_cnn8", epochs=1, refine_start=0.0, diagnostics=tuple(DIAGNOSTICS))
    data, rows = run_data(config), {}
    for device in ("cpu", "cuda"):
        model, there = run_model(config).to(device), data.to(device)
        labels = config.label_rule(there.train.y, 10).to(device)
        views = look(config, model, there, "fast")
        initial = build_model("bn_cnn8", 10, (1, 8, 8), seed=1).to(device)
        rows[device] = diagnose(config, initial, labels, METHODS["pgd_at"](), [], there, model, views, "train")
    for column in ("test_natural_ece", "train_natural_clean", "gradient_norm_hard", "gradient_norm_own", "iiw_paper"):
        assert rows["cuda"][column] == pytest.approx(rows["cpu"][column], rel=0.1)  # the attack's start differs
    assert CARD or rows["cuda"] == rows["cpu"]
    assert all(math.isfinite(value) for value in rows["cuda"].values())
