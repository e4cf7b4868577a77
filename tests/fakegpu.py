"""A GPU for tests on machines that have none: it computes on the CPU, as strict as CUDA where that can be told.

Within fake_gpu(), what is sent to "cuda" computes on the CPU and carries its device as a tag on its memory. Emulated:

devices   an operation that mixes them, a generator of the wrong one, fused SGD on unequal strides, and NumPy on CUDA's
          memory raise;
waiting   what makes the host wait for a device is noted in Cuda.waits, and raises while a graph is captured;
streams   one that uses what another one wrote, without having waited for it, is a race, and raises;
graphs    while one is captured nothing changes, and replay() repeats its operations on the same memory, so that what
          only Python knew is frozen.

It cannot see kernels' own numbers (a fake generator draws what the CPU's draws, whatever its device), TF32, cuDNN's
layouts, a graph's pool of memory and what is freed too early, a stream that overwrites what another one still reads,
what a kernel waits for that WAITS does not name, torch.compile, memory used, or speed.
"""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from types import SimpleNamespace
from typing import NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

aten, CPU = torch.ops.aten, torch.device("cpu")
WAITS = {
    aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.equal.default,
    aten._unique2.default, aten.unique_dim.default, aten.bincount.default, aten.repeat_interleave.Tensor,
}  # fmt: skip
INDEXED = {
    aten.index.Tensor, aten._unsafe_index.Tensor, aten.index_put.default, aten.index_put_.default,
    aten._index_put_impl_.default,
}  # fmt: skip
FUSED = {aten._fused_sgd_.default, aten._fused_sgd_.tensor_lr}
RealGenerator, real_load, real_autocast = torch.Generator, torch.load, torch.autocast


@contextmanager
def fake_gpu(devices: int = 1, capability: tuple[int, int] = (9, 0)) -> Iterator["Cuda"]:
    """Within: torch has this many CUDA devices. Yields what stands for torch.cuda: see its waits and replays."""
    global cuda
    cuda = Cuda(devices, capability)
    with ExitStack() as stack:
        for name in vars(Cuda):
            if not name.startswith("_"):
                stack.enter_context(mock.patch.object(torch.cuda, name, getattr(cuda, name)))
        stack.enter_context(mock.patch.object(torch.cuda.random, "manual_seed", cuda.manual_seed))
        stack.enter_context(mock.patch.object(torch.cuda, "device", OnDevice))
        for name, stand_in in dict(Generator=Generator, load=load, autocast=autocast).items():
            stack.enter_context(mock.patch.object(torch, name, stand_in))
        stack.enter_context(Operations())
        stack.enter_context(Front())
        yield cuda


class CudaError(RuntimeError):
    """What CUDA, or PyTorch for it, would refuse."""


# What stands for torch.cuda


class Stream:
    """Work in order. time: how many operations it was given; seen: how many of which other stream it has waited for."""

    def __init__(self, device=None):
        self.device, self.time, self.seen = located("cuda" if device is None else device), 0, {}
        cuda._streams.append(self)

    def wait_stream(self, other: "Stream") -> None:
        wait_for(other, self.seen)


class CUDAGraph:
    """What was captured: calls of operations, and the memory that each result stays in."""

    def __init__(self):
        self.generators, self.calls, self.before = [], [], {}

    def register_generator_state(self, generator: "Generator") -> None:
        if generator.device.type != "cuda":
            raise CudaError(f"a graph was given a generator on {generator.device}")
        self.generators.append(generator)

    def record(self, func, args, kwargs):
        """The operation's result. What it changes is kept as it was, to be put back."""
        if cuda._call.generator not in (None, *self.generators):
            raise CudaError(f"{func} draws from a generator that is not registered with the graph")
        writes = changed(func, args, kwargs)
        for x in writes:
            memory = x.untyped_storage()
            self.before.setdefault(memory._cdata, (memory, memory.clone()))
        out = func(*args, **kwargs)
        given = {x.untyped_storage()._cdata for x in tensors((args, kwargs))}
        fresh = [None if x.untyped_storage()._cdata in given else x.detach() for x in tensors(out)]
        if writes or any(x is not None for x in fresh):  # else a view, of memory that stays where it is
            self.calls.append((func, kept(args), kept(kwargs), fresh))
        return out

    def end(self) -> None:
        """Nothing has happened: memory is as it was before, and results are not there yet."""
        with unseen():
            for memory, content in self.before.values():
                memory.copy_(content)
            for x in (x for *_, fresh in self.calls for x in fresh if x is not None and x.is_floating_point()):
                x.fill_(torch.nan)

    def replay(self) -> None:
        cuda.replays += 1
        with unseen():
            for func, args, kwargs, fresh in self.calls:
                in_order(func, args, kwargs)
                for old, new in zip(fresh, tensors(func(*args, **kwargs)), strict=True):
                    if old is not None:
                        old.copy_(new)
                        written(old)


class Call(NamedTuple):
    """A call of torch from Python: the device that it names, the one that its tensors are on, its generator."""

    asked: torch.device | None = None
    around: torch.device = CPU
    generator: "Generator | None" = None


class Cuda:
    """Each public method or class in here replaces what torch.cuda has of that name."""

    Stream, CUDAGraph = Stream, CUDAGraph

    def __init__(self, devices: int, capability: tuple[int, int]):
        self._devices, self._capability, self._index = devices, capability, 0
        self._graph, self._into = None, None  # what is captured, on which stream
        self._generators = [RealGenerator() for _ in range(devices)]
        self._streams, self._current, self._seen = [], {}, {}  # all; the current one of each device; the host's
        self._call = Call()
        self.waits = []  # (what waited, file:line in sglrlib)
        self.replays = 0  # of graphs

    def _wait(self, device: torch.device, what: str) -> None:
        """The host waits for a device's current stream."""
        self.waits.append((what, in_library()))
        if self._graph:
            raise CudaError(f"operation not permitted when stream is capturing: {what} at {in_library()}")
        wait_for(self.current_stream(device), self._seen)

    def is_available(self):
        return True

    def is_initialized(self):
        return True

    def is_bf16_supported(self, including_emulation=True):
        return including_emulation or self._capability >= (8, 0)

    def get_device_name(self, device=None):
        return "fake GPU"

    def get_device_capability(self, device=None):
        return self._capability

    def get_device_properties(self, device=None):
        return SimpleNamespace(name="fake GPU", total_memory=0)

    def get_arch_list(self):
        return ["sm_{}{}".format(*self._capability)]

    def device_count(self):
        return self._devices

    def current_device(self):
        return self._index

    def set_device(self, device):
        self._index = located(device).index

    def current_stream(self, device=None):
        place = located("cuda" if device is None else device)
        if place not in self._current:
            self._current[place] = Stream(place)  # the default one
        return self._current[place]

    @contextmanager
    def stream(self, stream):
        before, index = self.current_stream(stream.device), self._index
        self._current[stream.device], self._index = stream, stream.device.index
        try:
            yield
        finally:
            self._current[stream.device], self._index = before, index

    def synchronize(self, device=None):
        for stream in self._streams:
            if stream.device == located("cuda" if device is None else device):
                wait_for(stream, self._seen)

    def graph_pool_handle(self):
        return 0, 1

    def empty_cache(self):
        pass

    def reset_peak_memory_stats(self):
        pass

    def max_memory_allocated(self):
        return 0

    def is_current_stream_capturing(self):
        return self._captures(located("cuda"))

    def _captures(self, device: torch.device) -> bool:
        return self._graph is not None and self.current_stream(device) is self._into

    @contextmanager
    def graph(self, graph, pool=None, stream=None):
        self.synchronize()  # the current device, whichever the stream's is
        stream = stream or Stream()
        with self.stream(stream):
            states = [(generator, generator.get_state()) for generator in graph.generators]
            self._graph, self._into = graph, stream
            try:
                yield
            finally:
                self._graph = None
                for generator, state in states:
                    generator.set_state(state)
                graph.end()

    def manual_seed(self, seed):
        self._generators[self._index].manual_seed(seed)

    def manual_seed_all(self, seed):
        for generator in self._generators:
            generator.manual_seed(seed)

    def get_rng_state(self, device="cuda"):
        return self._generators[located(device).index].get_state()

    def set_rng_state(self, state, device="cuda"):
        self._generators[located(device).index].set_state(state)


class OnDevice:
    """torch.cuda.device: within, another device is the current one."""

    def __init__(self, device):
        self.index = located(device).index

    def __enter__(self):
        self.before, cuda._index = cuda._index, self.index

    def __exit__(self, *_):
        cuda._index = self.before


class Generator(RealGenerator):
    """torch.Generator, with a device."""

    def __new__(cls, device="cpu"):
        self = super().__new__(cls)
        self.place = located(device)
        return self

    @property
    def device(self):
        return self.place


def load(*args, map_location="cpu", **kwargs):
    """torch.load."""
    found = real_load(*args, map_location="cpu", **kwargs)
    for x in tensors(found):
        tag(x, located(map_location))
    return found


def autocast(device_type, *args, **kwargs):
    """torch.autocast: which operations are cast is the CPU's choice."""
    return real_autocast("cpu", *args, **kwargs)


# What sees each operation


class Operations(TorchDispatchMode):
    """Sees each ATen operation, those of the backward pass too: devices, waits, races, and what a graph records."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        inputs = tensors((args, kwargs))
        place = self.place(func, args, inputs)
        generator = cuda._call.generator
        if generator is not None and generator.device != place:
            raise CudaError(f"{func}: expected a generator on {place}, found one on {generator.device}")
        if func in WAITS and inputs and device_of(inputs[0]) != CPU:
            cuda._wait(device_of(inputs[0]), str(func))
        if func in FUSED and place != CPU:
            same_strides(*args[:3])
        captured = place != CPU and cuda._captures(place)
        if captured:
            out = cuda._graph.record(func, args, kwargs)
        else:
            in_order(func, args, kwargs)
            out = func(*args, **kwargs)
        for x in tensors(out):
            if place != CPU and device_of(x) == CPU:
                tag(x, place)
                if not captured:
                    written(x)
        return out

    def place(self, func, args, inputs) -> torch.device:
        """The device that an operation runs on; raises where its tensors do not agree."""
        name, asked = str(func), cuda._call.asked
        if asked and (not inputs or any(part in name for part in ("_like", ".new_", "lift"))):
            return asked
        if not inputs:
            return cuda._call.around
        here = device_of(inputs[0])
        if func is aten.copy_.default:
            if device_of(inputs[1]) != here:
                copies(device_of(inputs[1]), here)
            return here
        if func in INDEXED:
            indices, inputs = tensors(args[1]), [inputs[0], *tensors(args[2:3])]
            for index in indices:
                if device_of(index) not in (here, CPU):
                    raise CudaError(f"{func}: indices on {device_of(index)}, expected the CPU or {here}")
                if here != CPU and (device_of(index) == CPU or index.dtype in (torch.bool, torch.uint8)):
                    cuda._wait(here, f"an index of {index.dtype} on {device_of(index)}")
        places = {device_of(x) for x in inputs if x.dim() or device_of(x) != CPU} or {CPU}
        if len(places) > 1:
            raise CudaError(f"{func}: expected all tensors on one device, found {sorted(map(str, places))}")
        return places.pop()


class Front(TorchFunctionMode):
    """Sees each call of torch from Python: what is asked of a device, moves, and what never becomes an operation."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        here = device_of(args[0]) if args and isinstance(args[0], Tensor) else CPU
        if func in ANSWERS:
            return ANSWERS[func](here)
        if func in (Tensor.to, Tensor.cpu, Tensor.cuda):
            return self.moved(func, *args, **kwargs)
        if here != CPU and func in (Tensor.numpy, Tensor.__array__):
            raise TypeError(f"can't convert {here} device type tensor to numpy. Use Tensor.cpu()")
        if here != CPU and func is Tensor.tolist:
            cuda._wait(here, "tolist")
        if here != CPU and func is F.one_hot:
            with self:
                return one_hot(*args, **kwargs)
        asked = located(kwargs["device"]) if kwargs.get("device") is not None else None
        around = next((place for x in tensors((args, kwargs)) if (place := device_of(x)) != CPU), CPU)
        if asked:
            kwargs["device"] = CPU
            if func is torch.tensor:
                copies(CPU, asked)
        before, cuda._call = cuda._call, Call(asked, around, kwargs.get("generator"))
        try:
            out = func(*args, **kwargs)
        finally:
            cuda._call = before
        if func is Tensor.__deepcopy__:
            tag(out, here)
        return out

    def moved(self, func, x: Tensor, *rest, **kwargs) -> Tensor:
        """Tensor.to and its kin."""
        target = CPU if func is Tensor.cpu else located("cuda") if func is Tensor.cuda else None
        rest = list(rest)
        for i, value in enumerate(rest):
            if type(value) in (str, int, torch.device):
                target, rest[i] = located(value), CPU
            elif isinstance(value, Tensor):
                target = device_of(value)
        if kwargs.get("device") is not None:
            target, kwargs["device"] = located(kwargs["device"]), CPU
        out = Tensor.to(x, *rest, **kwargs) if func is Tensor.to else x
        if target in (None, device_of(x)):
            return out
        copies(device_of(x), target)
        out = out.clone(memory_format=torch.preserve_format)
        tag(out, target)
        if target != CPU:
            written(out)
        return out


ANSWERS = {
    Tensor.device.__get__: lambda here: here,
    Tensor.is_cuda.__get__: lambda here: here != CPU,
    Tensor.is_cpu.__get__: lambda here: here == CPU,
}


def one_hot(x: Tensor, classes: int = -1) -> Tensor:
    """F.one_hot as CUDA has it, which does not look at the values where it is told how many classes there are."""
    classes = classes if classes >= 0 else int(x.max()) + 1
    return torch.zeros(*x.shape, classes, dtype=torch.long, device=x.device).scatter_(-1, x[..., None], 1)


# What all of it needs


@contextmanager
def unseen() -> Iterator[None]:
    """Within: what is done is no operation of the program under test."""
    with torch.no_grad(), torch._C._DisableTorchDispatch(), torch._C.DisableTorchFunction():
        yield


def tensors(tree) -> list[Tensor]:
    """Those in lists, tuples and dictionaries, however deep."""
    if isinstance(tree, Tensor):
        return [tree]
    parts = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else ()
    return [x for part in parts for x in tensors(part)]


def kept(tree):
    """Arguments for later: the same memory of the device; a number on the CPU is read now."""
    if isinstance(tree, Tensor):
        return tree.detach() if device_of(tree) != CPU else tree.clone()
    if isinstance(tree, dict):
        return {name: kept(part) for name, part in tree.items()}
    return type(tree)(map(kept, tree)) if isinstance(tree, list | tuple) else tree


def located(device) -> torch.device:
    """A device with its number; raises where there is none."""
    device = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    if device.type != "cuda":
        return device
    if (device.index or 0) >= cuda._devices:
        raise CudaError(f"invalid device ordinal: {device}")
    return torch.device("cuda", cuda._index if device.index is None else device.index)


def device_of(x: Tensor) -> torch.device:
    return getattr(x.untyped_storage(), "_device", CPU)


def tag(x: Tensor, device: torch.device) -> None:
    x.untyped_storage()._device = device


def copies(source: torch.device, target: torch.device) -> None:
    """The host waits for a copy between itself and a device, or between two devices."""
    for device in {source, target} - {CPU}:
        cuda._wait(device, f"a copy from {source} to {target}")


def in_library() -> str:
    """The file and line of sglrlib that we are in."""
    frame = sys._getframe(1)
    while frame and "/sglrlib/" not in frame.f_code.co_filename:
        frame = frame.f_back
    return f"{frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno}" if frame else ""


def wait_for(stream: Stream, seen: dict[Stream, int]) -> None:
    """Add what a stream has done, and what it waited for itself, to what somebody has seen."""
    for other, time in {**stream.seen, stream: stream.time}.items():
        seen[other] = max(seen.get(other, 0), time)


def in_order(func, args, kwargs) -> None:
    """Put an operation on its devices' current streams; raises where one uses what it has not waited for."""
    inputs = [(x, device) for x in tensors((args, kwargs)) if (device := device_of(x)) != CPU]
    for x, device in inputs:
        stream = cuda.current_stream(device)
        writer, time = getattr(x.untyped_storage(), "_written", (stream, 0))
        if writer is not stream and max(stream.seen.get(writer, 0), cuda._seen.get(writer, 0)) < time:
            raise CudaError(f"race: {func} uses what another stream of {device} has perhaps not written yet")
    for x in changed(func, args, kwargs):
        if device_of(x) != CPU:
            written(x)


def written(x: Tensor) -> None:
    """Its device's current stream has written to a tensor."""
    stream = cuda.current_stream(device_of(x))
    stream.time += 1
    x.untyped_storage()._written = stream, stream.time


def changed(func, args, kwargs) -> list[Tensor]:
    """What an operation writes to, of what it is given."""
    names, writes = signature(func)
    return tensors([value for name, value in [*zip(names, args, strict=False), *kwargs.items()] if name in writes])


@cache
def signature(func) -> tuple[list[str], set[str]]:
    """The names of an operation's arguments, and of those that it writes to."""
    arguments = func._schema.arguments
    writes = {a.name for a in arguments if a.alias_info and a.alias_info.is_write}
    if func is aten.native_batch_norm.default:  # its schema does not say so
        writes |= {"running_mean", "running_var"}
    return [a.name for a in arguments], writes


def same_strides(*lists: list[Tensor]) -> None:
    """Raise unless each weight, its gradient and its momentum lie in memory alike, as fused SGD on CUDA wants them."""
    for weight, *others in zip(*filter(None, lists), strict=True):
        for x in others:
            alike = all(s == t for s, t, n in zip(weight.stride(), x.stride(), weight.shape, strict=True) if n != 1)
            if not alike or weight.dtype != x.dtype:
                raise CudaError(f"fused SGD: strides {weight.stride()} and {x.stride()} of {tuple(weight.shape)}")
