import platform
import shutil
import subprocess
import sys

import pytest
import torch

from sglrlib import device
from sglrlib.checks import UsageError
from sglrlib.device import exact_fp32, gpu_trouble, pick_device, refuse_precision
from sglrlib.judging.diagnostics import DIAGNOSTICS
from sglrlib.recipes import recipe
from sglrlib.training.runs import Wanted, run


@pytest.fixture
def card(monkeypatch):
    """A card that torch finds: its compute capability, and the kernels that this torch was built with."""

    def put(capability, kernels=("sm_75", "sm_80", "sm_90"), cards=2):
        for name, value in dict(
            is_available=lambda: cards > 0, device_count=lambda: cards, get_arch_list=lambda: list(kernels),
            get_device_capability=lambda index=0: capability, get_device_name=lambda index=0: "NVIDIA Card",
        ).items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, value)

    return put


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("gpu", "expected 'cpu', 'cuda' or 'cuda:1'. Did you mean 'cuda'?"),
        ("cuda:x", "Did you mean 'cuda:0'?"),
        ("cpu:1", "Did you mean 'cpu'?"),
        ("mps", "Apple's MPS and Intel's XPU are not supported. Did you mean 'cpu'?"),
        ("cuda:2", "expected cuda:0 to cuda:1, as there are no more CUDA devices here"),
    ],
)
def test_a_device_that_cannot_be_is_refused(card, asked, said):
    card((9, 0))
    assert pick_device("cuda:1") == "cuda:1" and pick_device("cpu") == "cpu" and pick_device("") == "cuda"
    with pytest.raises(UsageError) as error:
        pick_device(asked)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("capability", "kernels", "works"),
    [
        ((7, 5), ["sm_75", "sm_80"], True),
        ((8, 9), ["sm_75", "sm_80"], True),  # a kernel runs on later cards of its generation
        ((7, 0), ["sm_75", "sm_80"], False),
        ((10, 3), ["sm_90"], False),
        ((12, 0), ["sm_90", "compute_90"], True),  # the driver compiles this one
        ((9, 0), ["sm_90a"], True),
        ((9, 0), ["gfx90a", "gfx942"], True),  # AMD's are not judged
    ],
)
def test_a_card_that_this_torch_has_no_kernels_for_is_named(card, capability, kernels, works):
    card(capability, kernels)
    assert (gpu_trouble() == "") == works and pick_device("") == ("cuda" if works else "cpu")
    if not works:
        said = rf"has no kernels for NVIDIA Card \(compute capability {capability[0]}.{capability[1]}\)"
        with pytest.raises(UsageError, match=said):
            pick_device("cuda")


def test_a_gpu_that_torch_cannot_use_is_told_with_the_reason(card, monkeypatch):
    def too_old():
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nPlease update.")

    card((9, 0), cards=0)
    assert gpu_trouble() == "torch finds no CUDA device here" and device.described("cpu") == "cpu"
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(torch.cuda, "init", too_old)
    assert pick_device("") == "cpu" and device.described("cpu").startswith(
        "cpu, as torch cannot use the GPU here: The NV"
    )
    with pytest.raises(UsageError, match=r"too old \(found version 11040\)\. \(docs/gpu.md .* 'cpu' is the nearest"):
        pick_device("cuda")
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    assert "CUDA_VISIBLE_DEVICES" in gpu_trouble() and device.described("cpu") == "cpu"
    card((9, 0))
    assert device.described("cuda:1") == "cuda:1 (NVIDIA Card)"


def test_bf16_is_refused_on_a_card_that_only_emulates_it(card):
    for capability, emulated in (((7, 5), True), ((8, 0), False), ((9, 0), False)):
        card(capability)
        refuse_precision("fp32", "cuda")
        for precision in ("bf16", "amp") if emulated else ():
            with pytest.raises(UsageError, match=f"precision = '{precision}': NVIDIA Card only emulates bfloat16"):
                refuse_precision(precision, "cuda")
        if not emulated:
            refuse_precision("amp", "cuda:1")


def test_what_float32_means_is_told(card):
    for capability, expected in (((7, 5), "fp32"), ((8, 0), "tf32")):
        card(capability)
        assert device.convolutions("cuda") == expected and device.convolutions("cpu") == "fp32"
        with exact_fp32():
            assert device.convolutions("cuda") == "fp32"


def test_tf32_is_off_within_and_as_before_after():
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul

    def state():
        return cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision, matmul.fp32_precision, cudnn.allow_tf32

    before = state()
    with exact_fp32():
        assert state() == ("ieee", "ieee", "ieee", False)  # a model that reads the older flag is not stopped
        with exact_fp32():
            pass
        assert state() == ("ieee", "ieee", "ieee", False)
    assert state() == before


def test_weeks_on_a_cpu_have_to_be_asked_for(store, card, monkeypatch):
    card((9, 0), cards=0)
    for changes in (dict(), dict(arch="wrn34_10"), dict(labels="self_guided")):
        with pytest.raises(UsageError, match=r"days or weeks of a CPU, and torch finds no CUDA .* device = 'cpu'"):
            run(recipe("cifar10", "paper", **changes))
    assert not (store / "runs").exists()
    for config in (recipe("cifar10", "small"), recipe("digits")):
        Wanted(config, {}).check()
    Wanted(recipe("cifar10", "paper"), {}, device="cpu").check()
    assert run(recipe("cifar10", "paper"), train_missing=False) is None
    card((9, 0))
    Wanted(recipe("cifar10", "paper"), {}).check()


def test_diagnostics_are_in_exact_fp32(small, store, monkeypatch):
    precisions = []

    def note(snapshot):
        precisions.append(torch.backends.cudnn.conv.fp32_precision)
        return {}

    monkeypatch.setitem(DIAGNOSTICS, "calibration", note)
    run(small(epochs=1, diagnostics=("calibration",)), (), device="cpu", say=lambda line: None)
    assert precisions == ["ieee"]


FAULTS = """
import resource, torch
from sglrlib.device import using

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(40):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults())
with using("cpu"):
    print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc: nothing to set")
def test_freed_memory_is_kept_for_the_next_tensor():
    """By the system's count of page faults, in a process of its own, for tensors larger than glibc keeps by itself."""
    shown = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True).stdout
    by_default, kept = map(int, shown.split())
    assert 4 * kept < by_default
