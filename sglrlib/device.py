"""The device that a run computes on: which one, what it can do, and what is set while it is used."""

import ctypes
import functools
import platform
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from sglrlib.checks import UsageError


def pick_device(device: str = "") -> str:
    """'' -> 'cuda' where torch has a GPU that it can use, else 'cpu'; 'cpu', 'cuda' and 'cuda:1' are themselves.

    AMD's GPUs are 'cuda' too, as ROCm's torch has it. Raises UsageError for a device that is not here, or that torch
    cannot use, and says why.
    """
    kind, _, index = device.partition(":")
    if kind not in ("", "cpu", "cuda") or not re.fullmatch(r"(|cpu|cuda(:\d+)?)", device):
        others = " Apple's MPS and Intel's XPU are not supported." if kind in ("mps", "xpu") else ""
        nearest = "cuda:0" if kind == "cuda" else "cuda" if "cu" in kind or "gpu" in kind else "cpu"
        raise UsageError(f"device = {device!r}: expected 'cpu', 'cuda' or 'cuda:1'.{others} Did you mean {nearest!r}?")
    if kind == "cpu":
        return device
    trouble = gpu_trouble(int(index or 0))
    if kind == "cuda" and trouble:
        raise UsageError(f"device = {device!r}: {trouble}; 'cpu' is the nearest.")
    return device or ("cpu" if trouble else "cuda")


def gpu_trouble(index: int = 0) -> str:
    """Why torch cannot compute on the GPU of this number; '' where it can."""
    if not torch.cuda.is_available():
        if not shutil.which("nvidia-smi"):
            return "torch finds no CUDA device here"
        try:
            torch.cuda.init()
        except (RuntimeError, AssertionError) as error:
            return f"torch cannot use the GPU here: {str(error).splitlines()[0]} (docs/gpu.md says which torch can)"
        return "torch finds no CUDA device here, as CUDA_VISIBLE_DEVICES hides them"
    if index >= torch.cuda.device_count():
        return f"expected cuda:0 to cuda:{torch.cuda.device_count() - 1}, as there are no more CUDA devices here"
    major, minor = torch.cuda.get_device_capability(index)
    kernels = [re.fullmatch(r"(sm|compute)_(\d+)(\d)[af]?", arch) for arch in torch.cuda.get_arch_list()]
    if not all(kernels) or not kernels:  # ROCm's names
        return ""
    for kind, built_major, built_minor in (match.groups() for match in kernels):
        same, older = int(built_major) == major, (int(built_major), int(built_minor)) <= (major, minor)
        if older and (same or kind == "compute"):
            return ""
    has = f"{torch.cuda.get_device_name(index)} (compute capability {major}.{minor})"
    return f"this torch ({torch.__version__}) has no kernels for {has} (docs/gpu.md says which torch has)"


def refuse_precision(precision: str, device: str) -> None:
    """Raise UsageError for bfloat16 where the device only emulates it, several times slower than float32."""
    if precision == "fp32":
        return
    if device.startswith("cuda"):
        emulated, name = torch.cuda.get_device_capability(device) < (8, 0), torch.cuda.get_device_name(device)
    else:
        emulated, name = not has_bf16(), cpu_name()
    if emulated:
        raise UsageError(
            f"precision = {precision!r}: {name} only emulates bfloat16, several times slower than float32. Expected "
            "'fp32'."
        )


@contextmanager
def using(device: str) -> Iterator[None]:
    """Within: a GPU is torch's current one, and cuDNN tries its algorithms on each new shape and keeps the fastest.

    On a CPU it calls keep_freed_memory(), whose effect lasts.
    """
    if not device.startswith("cuda"):
        keep_freed_memory()
        yield
        return
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        with torch.cuda.device(device):
            yield
    finally:
        torch.backends.cudnn.benchmark = before


def keep_freed_memory() -> None:
    """Have this process keep the memory that it frees, up to 2 GiB, where the C library is glibc.

    By default glibc hands a freed activation back to the system, which clears it page by page for the next one. A 3x3
    convolution of 16 channels on 80 CIFAR images, forward and backward, takes 54 ms by default and 31 ms with this (one
    thread of an AMD EPYC, AVX2). The options are those of mallopt(3).
    """
    trim_threshold, top_pad, mmap_max = -1, -2, -4
    with suppress(AttributeError, OSError, TypeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 2**28)):
            mallopt(option, value)


@contextmanager
def exact_fp32() -> Iterator[None]:
    """Within: no TF32 on CUDA, neither in matrix products nor in cuDNN."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [(backend, backend.fp32_precision) for backend in (cudnn.conv, cudnn.rnn, matmul)]
    cudnn.allow_tf32 = False  # the older flag: reading it raises where it and the newer ones differ
    for backend, _ in before:
        backend.fp32_precision = "ieee"
    try:
        yield
    finally:
        cudnn.allow_tf32 = before[0][1] == "tf32"
        for backend, precision in before:
            backend.fp32_precision = precision


def evaluation_batch(device: torch.device) -> int:
    """Images that are evaluated at a time: 500, on a GPU of 20 GiB or more 1,000; WRN-34-10 then takes about 16 GiB."""
    roomy = device.type == "cuda" and torch.cuda.get_device_properties(device).total_memory > 20 * 2**30
    return 1000 if roomy else 500


def convolutions(device: str) -> str:
    """What a float32 convolution computes in outside of exact_fp32(): 'fp32', or 'tf32' with its mantissa of 10 bits.

    TF32 is torch's default from Ampere on, so also what the release trains in there.
    """
    allowed = device.startswith("cuda") and torch.backends.cudnn.conv.fp32_precision == "tf32"
    return "tf32" if allowed and torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"


def device_name(device: str) -> str:
    """A GPU's name, or 'cpu'."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu"


def described(device: str) -> str:
    """'cuda (NVIDIA H100)', or 'cpu', which says so where there is a GPU that torch cannot use."""
    if device.startswith("cuda"):
        return f"{device} ({device_name(device)})"
    trouble = gpu_trouble()
    return f"cpu, as {trouble}" if "cannot use" in trouble or "no kernels" in trouble else "cpu"


def cpu_name() -> str:
    """The processor's name, as far as the system knows it, and the widest instructions that torch uses on it."""
    names = re.findall(r"^model name\s*: (.+)$", cpuinfo(), re.MULTILINE) or [
        platform.processor() or platform.machine()
    ]
    return f"{names[0]}, {torch.backends.cpu.get_cpu_capability()}"


def has_bf16() -> bool:
    """Whether the processor computes in bfloat16 itself, as far as the system tells; else it is taken to."""
    return not cpuinfo() or bool(re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", cpuinfo()))


@functools.cache
def cpuinfo() -> str:
    """What Linux knows of the processor; '' elsewhere."""
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""
