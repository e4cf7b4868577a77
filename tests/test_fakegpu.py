"""The CUDA path on fakegpu.py, bit for bit as on the CPU; first, that the fake is as strict as CUDA."""

import copy
import shutil
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import product

import pytest
import torch
from fakegpu import CudaError, fake_gpu

import sglrlib
from sglrlib.judging.diagnostics import DIAGNOSTICS
from sglrlib.judging.evaluate import correct, outputs
from sglrlib.method.attacks import PGD, Own, Transfer
from sglrlib.method.autoattack import Part
from sglrlib.method.fast import WARM_UP, captured
from sglrlib.method.labels import LABELS
from sglrlib.method.methods import METHODS
from sglrlib.method.models import build_model
from sglrlib.recipes import recipe
from sglrlib.store import checkpoint
from sglrlib.training.measure import diagnose, look
from sglrlib.training.networks import load_model
from sglrlib.training.runs import run
from sglrlib.training.train import first_step, run_data, run_model, train

# 5 batches of 8 and one of 3 in an epoch: more than WARM_UP, so that the first epoch ends in replays.
TINY = dict(
    train_size=43, val_size=10, test_size=20, train_eval_size=10, eval_steps=1, attack_steps=1, arch="bn_cnn4",
    batch_size=8, lr=0.01, labels="self_guided", diagnostics=(),
)  # fmt: skip
IMAGES = (1, 8, 8)


def tiny(**changes):
    return recipe("digits", **(TINY | changes))


# The fake is as strict as CUDA


def test_devices_are_not_mixed():
    with fake_gpu(devices=2) as gpu:
        x, i = torch.rand(3, device="cuda"), torch.tensor([1])
        assert x.is_cuda and not x.is_cpu and not i.is_cuda and str(x.device) == "cuda:0"
        made = x[0] + 1, torch.zeros_like(x), x.new_ones(2), x + torch.tensor(1.0), x[i], copy.deepcopy(x), x.double()
        assert {str(y.device) for y in made} == {"cuda:0"} and str(x.cpu().device) == "cpu"
        assert str(torch.zeros_like(i, device="cuda:1").device) == "cuda:1"
        there = x.to("cuda:1")
        for wrong in (
            lambda: x + torch.ones(3), lambda: x + there, lambda: torch.ones(3)[i.cuda()], lambda: x[there.long()],
            lambda: x.numpy(), lambda: torch.rand(3, device="cuda", generator=torch.Generator()),
            lambda: torch.rand(3, device="cuda:1", generator=torch.Generator("cuda")), lambda: x.to("cuda:2"),
            lambda: torch.rand(3, generator=torch.Generator("cuda")), lambda: torch.cuda.set_device(2),
        ):  # fmt: skip
            with pytest.raises((CudaError, TypeError)):
                wrong()
        torch.cuda.set_device(1)
        assert str(torch.rand(1, device="cuda").device) == str(torch.Generator("cuda").device) == "cuda:1"
        assert str(x.cuda().device) == "cuda:1" and torch.cuda.current_stream().device == torch.device("cuda:1")
        with torch.cuda.device(0):
            assert torch.cuda.current_device() == 0 and str(torch.cuda.Stream().device) == "cuda:0"
        assert torch.cuda.current_device() == 1 and torch.cuda.device_count() == 2
        assert torch.cuda.get_device_capability() == (9, 0) and torch.cuda.is_bf16_supported() and gpu.waits
    with fake_gpu(capability=(7, 5)):
        assert torch.cuda.get_device_capability() == (7, 5)
        assert torch.cuda.is_bf16_supported() and not torch.cuda.is_bf16_supported(including_emulation=False)
    assert torch.Generator("cpu").device == torch.rand(1).device and not hasattr(torch.Generator, "place")


def test_fused_sgd_wants_equal_strides():
    with fake_gpu():
        weight = torch.nn.Parameter(torch.rand(4, 3, 2, 2, device="cuda"))
        optimizer = torch.optim.SGD([weight], 0.1, 0.9, fused=True)
        weight.grad = torch.rand(4, 3, 2, 2, device="cuda")
        optimizer.step()
        weight.grad = weight.grad.to(memory_format=torch.channels_last)
        with pytest.raises(CudaError, match="strides"):
            optimizer.step()


def test_what_waits_is_noted_and_refused_under_capture():
    with fake_gpu() as gpu:
        x, i = torch.rand(3, device="cuda"), torch.tensor([1])
        gpu.waits.clear()
        torch.nn.functional.one_hot((x * 2).sum().long(), 5)
        assert not gpu.waits
        waiting = (
            lambda: x.sum().item(), lambda: x[x > 0.5], lambda: x.cpu(), lambda: x[i], lambda: bool(x[0] > 1),
            lambda: i.cuda(), lambda: torch.tensor(1.0, device="cuda"), lambda: x.tolist(), lambda: x.nonzero(),
            lambda: torch.equal(x, x), lambda: x.copy_(torch.ones(3)), lambda: torch.ones(3).copy_(x),
        )  # fmt: skip
        for wait in waiting:
            gpu.waits.clear()
            wait()
            assert len(gpu.waits) == 1
            with pytest.raises(CudaError, match="capturing"), torch.cuda.graph(torch.cuda.CUDAGraph()):
                wait()


def test_a_graph_replays_what_was_captured_on_the_same_memory():
    with fake_gpu():
        x, generator = torch.ones(3, device="cuda"), torch.Generator("cuda").manual_seed(1)
        factor, number = 2.0, torch.tensor(1.0)
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(generator)
        with torch.cuda.graph(graph):
            y = (x + number) * factor
            x += 1
            drawn = torch.rand(3, device="cuda", generator=generator)
        factor = number.fill_(3.0)  # what is not on the device is frozen in a graph
        assert x.tolist() == [1] * 3 and y.isnan().all()  # nothing has happened yet
        expected = torch.rand(2, 3, generator=torch.Generator().manual_seed(1))
        for count in (1, 2):
            graph.replay()
            assert x.tolist() == [1 + count] * 3 and y.tolist() == [2 + 2 * count] * 3
            assert torch.equal(drawn.cpu(), expected[count - 1])
        with pytest.raises(CudaError, match="not registered"), torch.cuda.graph(torch.cuda.CUDAGraph()):
            torch.rand(3, device="cuda", generator=generator)
        with pytest.raises(CudaError, match="generator"):
            torch.cuda.CUDAGraph().register_generator_state(torch.Generator())


def test_a_graph_has_what_was_done_on_its_stream_alone():
    with fake_gpu(devices=2):
        here, there = torch.zeros(1, device="cuda:0"), torch.zeros(1, device="cuda:1")
        with torch.cuda.graph(graph := torch.cuda.CUDAGraph(), stream=torch.cuda.Stream("cuda:1")):
            here += 1
            there += 1
        graph.replay()
        graph.replay()
        assert here == 1 and there == 2


def test_streams_that_do_not_wait_for_each_other_race():
    with fake_gpu(devices=2):
        x, side = torch.rand(3, device="cuda") * 2, torch.cuda.Stream()
        with torch.cuda.stream(side), pytest.raises(CudaError, match="race"):
            x.relu()
        side.wait_stream(torch.cuda.current_stream("cuda:1"))  # that of another device
        with torch.cuda.stream(side), pytest.raises(CudaError, match="race"):
            x.relu()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            y = x.relu()
        for use in (lambda: y + 1, lambda: y.add_(1), lambda: y.cpu()):
            with pytest.raises(CudaError, match="race"):
                use()
        torch.cuda.synchronize("cuda:1")
        with pytest.raises(CudaError, match="race"):
            y.relu()
        torch.cuda.synchronize()
        y.relu()


# Training steps


def taken(config, device, speed="fast"):
    """Steps before and after refinement starts, replayed in each mode and size: losses, and all that they changed."""
    y = run_data(config).train.to(device).y
    teachers = [run_model(teacher).eval().to(device) for teacher in config.teachers]
    step = first_step(config, y, speed=speed, teachers=teachers)
    take = captured(step) if device != "cpu" and speed != "plain" else step
    data, losses, modes = run_data(config).train.to(device), [], set()
    for epoch in (1, 2, 4):
        step.generator.manual_seed(epoch)
        step.start_epoch(epoch)
        few = 2 if step.mode in modes else WARM_UP + 2
        modes.add(step.mode)
        for batch_size in (8, 3):
            batches = list(data.batches(batch_size, step.generator, config.augment))[:few]
            given = copy.deepcopy(batches)
            losses += [take(*batch).clone() for batch in batches]
            assert all(equal(*pair) for pair in zip(batches, given, strict=True))
    momentum = [value for values in step.optimizer.state.values() for value in values.values() if value is not None]
    found = [*losses, *step.model.state_dict().values(), *step.labels.state_dict().values(), *momentum]
    return [x.cpu() for x in found], len(modes)


def same_steps(config, speed="fast"):
    """How many modes were passed, where steps on CUDA and on the CPU are the same bit for bit."""
    expected, modes = taken(config, "cpu", speed)
    with fake_gpu():
        found, _ = taken(config, "cuda", speed)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)) and expected[0] > 0
    return modes


@pytest.mark.parametrize("precision", ["fp32", "bf16", "amp"])
@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("method", METHODS)
def test_each_step_is_captured_and_does_what_it_does_on_the_cpu(method, labels, precision):
    config = tiny(method=method, labels=labels, precision=precision, refine_start=0.5, epochs=4)
    assert same_steps(config) == 1 + LABELS[labels].starts


@pytest.mark.parametrize(
    "changes",
    [dict(awp=0.01, awp_start=0.9, method="trades"), dict(attack_mode="train"), dict(clean_pass="always"),
     dict(clean_pass="eval"), dict(augment="crop_flip"), dict(augment="crop_flip_rotate"), dict(normalise=True),
     dict(arch="cnn4"), dict(arch="wrn10_1"), dict(momentum=0.0), dict(outer="clean", schedule="cosine"),
     dict(initial="zero", average="old", r=0.8), dict(attack_steps=0)],
    ids=str,
)  # fmt: skip
def test_each_setting_does_on_cuda_what_it_does_on_the_cpu(changes):
    config = tiny(**(dict(refine_start=0.5, epochs=4, awp=0.01, awp_start=0.0) | changes))
    assert same_steps(config) == 2 + ("awp_start" in changes)


def test_a_method_of_one_s_own_may_attack_by_the_margin(monkeypatch):
    @dataclass(frozen=True)
    class Margin(METHODS["pgd_at"]):
        title, objective = "Margin", "margin"

    monkeypatch.setitem(METHODS, "margin", Margin)
    same_steps(tiny(method="margin", refine_start=0.0, epochs=4))


def test_plain_steps_do_on_cuda_what_they_do_on_the_cpu():
    same_steps(tiny(refine_start=0.0, epochs=4), "plain")


def test_a_captured_epoch_waits_for_nothing():
    with fake_gpu() as gpu:
        config = tiny(refine_start=0.0, augment="crop_flip_rotate")
        data = run_data(config).train.to("cuda")
        step = first_step(config, data.y)
        take, total = captured(step), torch.zeros((), device="cuda")
        gpu.waits.clear()
        for epoch in range(1, WARM_UP + 2):  # the small last batch is captured in the last of them
            step.generator.manual_seed(epoch)
            step.start_epoch(epoch)
            for x, y, index in data.batches(8, step.generator, config.augment):
                total += take(x, y, index) * len(y)
        assert not gpu.waits


# Whole runs


def kept(folder):
    """The numbers in a run's last checkpoint: weights, statistics, labels, momentum and the curve."""
    state = checkpoint.load(folder / "last.pt")
    momentum = [values["momentum_buffer"] for values in state["optimizer"]["state"].values()]
    curve = [torch.tensor(list(row.values()), dtype=torch.float64) for row in state["curve"]]
    return [*state["model"].values(), *state["labels"].values(), *momentum, *curve]


def equal(found, expected):
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


class Enough(Exception):
    pass


def until(epoch):
    def report(row):
        if row["epoch"] == epoch:
            raise Enough

    return report


def leg(config, folder, device, speed, last):
    """Train up to an epoch, from where the folder is on."""
    with fake_gpu() if device != "cpu" else nullcontext() as gpu, pytest.raises(Enough):
        train(config, folder, device=device, speed=speed, report=until(last))
    if gpu:
        assert not any(at.startswith("step.py") for _, at in gpu.waits) and bool(gpu.replays) == (speed == "fast")


def test_a_run_goes_on_at_any_speed_on_any_device(tmp_path):
    """On CUDA exactly as on the CPU, where plain and fast differ by rounding."""
    config, devices, speeds = tiny(epochs=3, refine_start=0.0, train_eval_size=5), ("cpu", "cuda"), ("plain", "fast")
    whole = {}
    for speed in speeds:
        leg(config, tmp_path / speed, "cpu", speed, 3)
        whole[speed] = kept(tmp_path / speed)
    for device, speed in product(devices, speeds):
        leg(config, tmp_path / device / speed, device, speed, 2)
    for first, then in product(speeds, speeds):
        found = []
        for device, other in product(devices, devices):
            folder = shutil.copytree(tmp_path / device / first, tmp_path / f"{device} {first} {other} {then}")
            leg(config, folder, other, then, 3)
            found.append(kept(folder))
        assert all(equal(numbers, found[0]) for numbers in found[1:])
        assert first != then or equal(found[0], whole[first])
        assert all(torch.allclose(a, b, rtol=0, atol=1e-5) for a, b in zip(found[0], whole["plain"], strict=True))


def test_an_epoch_waits_once_before_it_is_judged(tmp_path):
    """For its loss: not in a step, and not where averaged weights get their statistics."""
    waits = []
    with fake_gpu() as gpu:

        def report(row):
            waits.append([at for _, at in gpu.waits if not at.startswith(("evaluate.py", "measure.py"))])
            gpu.waits.clear()

        train(tiny(epochs=4, refine_start=0.5, swa_start=0.2), tmp_path, device="cuda", report=report)
    assert [at.partition(":")[0] for epoch in waits[1:] for at in epoch] == ["train.py"] * 3


@pytest.mark.parametrize("changes", [dict(), dict(swa_start=0.2, method="kd_at", awp=0.01, awp_start=0.0)], ids=str)
def test_a_run_on_the_second_gpu_is_that_on_the_cpu(store, monkeypatch, changes):
    monkeypatch.setattr("sglrlib.method.attacks.Part", partial(Part, iterations=2))
    config, found = tiny(epochs=2, refine_start=0.5, diagnostics=tuple(DIAGNOSTICS), **changes), {}
    for device in ("cpu", "cuda:1"):
        with fake_gpu(devices=2):
            seen = []

            def note(line, seen=seen):
                seen.append(torch.cuda.current_device())

            result = run(config, ["pgd_2", "autoattack"], device=device, say=note)
            assert (1 in seen) == (device == "cuda:1") and torch.cuda.current_device() == 0
            network = load_model(config, "last", device)
            assert str(next(network.parameters()).device) == device
        flags = [result.flags(which, name) for which in ("best", "last") for name in ("natural", "pgd_2", "autoattack")]
        curve = torch.tensor([list(row.values()) for row in result.curve], dtype=torch.float64)
        found[device] = [*checkpoint.weights(store / "runs" / config.id, "last").values(), curve, *flags]
        shutil.rmtree(store / "runs")
    assert equal(found["cuda:1"], found["cpu"])


def test_train_takes_the_second_gpu_whichever_is_current(tmp_path):
    config = tiny(epochs=2, refine_start=0.5)
    for device in ("cpu", "cuda:1"):
        with fake_gpu(devices=2):
            train(config, tmp_path / device, device=device, report=lambda row: None)
    assert equal(kept(tmp_path / "cuda:1"), kept(tmp_path / "cpu"))


# Attacks, judging, diagnostics


@pytest.fixture
def judged():
    """A network, images, and labels of which most are the network's own predictions."""
    model = build_model("bn_cnn4", 10, IMAGES).eval()
    x = torch.rand(8, *IMAGES, generator=torch.Generator().manual_seed(0))
    return model, x, model(x).argmax(1).index_fill(0, torch.tensor([0]), 9)


def on_cuda(model, *tensors):
    return copy.deepcopy(model).to("cuda"), *(tensor.to("cuda") for tensor in tensors)


def random_noise(model, x, y, eps, step, generator):
    return (x + eps * (2 * torch.rand(x.shape, generator=generator, device=x.device) - 1)).clamp(0, 1)


@pytest.mark.parametrize(
    "attack",
    [PGD(0.1, 0.05, 2), PGD(0.1, 0.05, 2, objective="margin"), PGD(0.1, 0.05, 2, objective="kl", start="gaussian"),
     PGD(0.1, 0.05, 2, start="none"), Own(random_noise, 0.1, 0.1),
     Transfer(PGD(0.1, 0.05, 2), build_model("cnn4", 10, IMAGES, seed=1)),
     Part(0.2, "apgd_ce", 3), Part(0.2, "apgd_t", 2), Part(0.2, "fab_t", 2), Part(0.5, "square", 50)],
    ids=lambda attack: f"{type(attack).__name__} {getattr(attack, 'part', '')}",
)  # fmt: skip
@pytest.mark.parametrize("speed", ["plain", "fast"])
def test_each_attack_finds_on_cuda_what_it_finds_on_the_cpu(judged, attack, speed):
    expected = outputs(*judged, attack, speed=speed)
    with fake_gpu():
        found = outputs(*on_cuda(*judged), copy.deepcopy(attack), speed=speed)
        assert all(part.is_cuda for part in found)
        assert equal([part.cpu() for part in found], expected) and not torch.equal(expected[0], judged[1])


def test_a_model_on_cuda_is_judged_as_on_the_cpu(judged, monkeypatch):
    monkeypatch.setattr("sglrlib.method.attacks.Part", partial(Part, iterations=2))
    how = dict(eps_255=26, attacks=["pgd_2", "cw_inf", "square_50", "autoattack"])
    expected = sglrlib.judge(*judged, **how)
    with fake_gpu():
        found = sglrlib.judge(*on_cuda(*judged), **how)
    assert found.flags.keys() == expected.flags.keys() >= {"natural", "apgd_ce", "apgd_t", "fab_t", "autoattack"}
    assert equal(found.flags.values(), expected.flags.values()) and found.checks == expected.checks
    assert 0 < expected.flags["natural"].sum() < 8


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_nothing_reseeds_the_global_generators_of_cuda(judged, device):
    with fake_gpu(devices=2):
        before = [torch.cuda.get_rng_state(i) for i in range(2)]
        model, x, y = (part.to(device) for part in judged)
        correct(model, x, y, Part(0.2, "apgd_ce", 2))
        build_model("cnn4", 10, IMAGES)
        sglrlib.register("attack", "noise_of_one_s_own", random_noise)
        assert equal([torch.cuda.get_rng_state(i) for i in range(2)], before)
        torch.manual_seed(1)
        assert not equal([torch.cuda.get_rng_state(i) for i in range(2)], before)


@pytest.mark.parametrize("name", DIAGNOSTICS)
def test_each_diagnostic_is_on_cuda_what_it_is_on_the_cpu(name):
    config = tiny(refine_start=0.0, diagnostics=(name,), noise_rate=0.4)

    def row(device):
        data, model = run_data(config).to(device), run_model(config).to(device)
        labels = config.label_rule(data.train.y, 10).to(device)
        initial = build_model("bn_cnn4", 10, IMAGES, seed=1).to(device)
        views = look(config, model, data, "fast")
        return diagnose(config, initial, labels, METHODS["pgd_at"](), [], data, model, views, "train")

    expected = row("cpu")
    with fake_gpu():
        assert row("cuda") == expected and len(expected) > 1
