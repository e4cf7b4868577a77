"""What makes training fast without changing what is trained: attacks on a folded copy, and steps as CUDA graphs."""

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.nn.utils.parametrize import is_parametrized

from sglrlib.checks import UsageError

HOOKS = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"
WARM_UP = 3  # plain steps before one is recorded, as PyTorch's notes on CUDA graphs advise


class AttackCopy(nn.Module):
    """A frozen eval-mode copy of a model for attacks: each BatchNorm behind a convolution is folded into it.

    The copy's logits equal the model's in eval mode up to rounding. dtype is that of convolutions and linear layers,
    float32, bfloat16 or float64; input and output stay float32. refresh() takes over the model's present weights and
    statistics. Raises UsageError for a model whose forward torch.fx cannot trace (it branches on the data, say), or
    that does more than its forward says: hooks, parametrizations. What else goes wrong, strays() sees.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.dtype = dtype
        hooked = [type(m).__name__ for m in model.modules() if any(getattr(m, hooks) for hooks in HOOKS)]
        if hooked or any(is_parametrized(module) for module in model.modules()):
            has = f"hooks on {hooked[0]}" if hooked else "parametrizations"
            raise UsageError(f"this model has {has}, which no copy follows: use speed = 'plain'.")
        try:
            traced = fx.symbolic_trace(copy.deepcopy(model).eval())
        except Exception as error:  # fx raises whatever the model's own code makes of a proxy
            raise UsageError(f"this model cannot be traced ({error}): use speed = 'plain'.") from error
        originals = dict(model.named_modules())
        folded = dict(foldable(traced))
        self.sources = []  # (module of the copy, module of the model, the model's BatchNorm folded into it or None)
        for name, module in list(traced.named_modules()):
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                batch_norm = originals.get(folded.get(name))
                self.sources.append((module, originals[name], batch_norm))
                if batch_norm is not None and module.bias is None:
                    module.bias = nn.Parameter(module.weight.new_zeros(module.out_channels))
            elif name in folded.values():
                traced.set_submodule(name, nn.Identity())
        self.net = traced.requires_grad_(False).to(dtype=dtype, memory_format=torch.channels_last)
        for module in self.net.modules():
            if isinstance(module, nn.BatchNorm2d) and dtype == torch.bfloat16:
                module.float()  # no convolution before it: its statistics stay float32
        theirs = dict(model.named_parameters()) | dict(model.named_buffers())
        own = dict(self.net.named_parameters()) | dict(self.net.named_buffers())
        renewed = {id(tensor) for module, _, _ in self.sources for tensor in module.parameters()}
        self.kept = [(tensor, theirs[name]) for name, tensor in own.items() if id(tensor) not in renewed]
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> "AttackCopy":
        """Take over the model's present state; returns self."""
        for module, source, batch_norm in self.sources:
            weight, bias = source.weight, source.bias
            if batch_norm is not None:
                weight, bias = fuse_conv_bn_weights(
                    weight, bias, batch_norm.running_mean, batch_norm.running_var, batch_norm.eps,
                    batch_norm.weight, batch_norm.bias,
                )  # fmt: skip
            module.weight.copy_(weight)
            if bias is not None:
                module.bias.copy_(bias)
        for tensor, source in self.kept:
            tensor.copy_(source)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) float32 for images (N, C, H, W) in [0, 1]."""
        return self.net(x.to(self.dtype, memory_format=torch.channels_last)).float()


@torch.no_grad()
def strays(target: nn.Module, model: nn.Module, x: Tensor) -> str:
    """How far target's logits are from the model's on images x (N, C, H, W), in words; '' where it is rounding."""
    own, theirs = model(x).float(), target(x).float()
    apart = (own - theirs).abs().max().item() if own.shape == theirs.shape else math.inf
    close = apart <= 1e-3 * max(1.0, own.abs().max().item())  # False for NaN too
    return "" if close else f"its prepared copy computes something else (logits differ by {apart:.3g})"


def foldable(traced: fx.GraphModule) -> Iterator[tuple[str, str]]:
    """Names of each convolution whose output goes into one BatchNorm and nowhere else, with that BatchNorm's."""
    modules = dict(traced.named_modules())
    for node in traced.graph.nodes:
        if node.op == "call_module" and isinstance(modules[node.target], nn.BatchNorm2d):
            before = node.all_input_nodes[0]
            convolution = before.op == "call_module" and isinstance(modules[before.target], nn.Conv2d)
            if convolution and len(before.users) == 1:
                yield before.target, node.target


class Itself:
    """The model as its own attack copy: the plain path that AttackCopy is tested against."""

    def __init__(self, model: nn.Module):
        self.model = model

    def refresh(self) -> nn.Module:
        return self.model


def attack_target(model: nn.Module, speed: str, precision: str = "fp32") -> "AttackCopy | Itself":
    """What an attack on model runs on; call its refresh() after each update of the model.

    speed 'plain' is the model itself (in fp32), 'fast' an AttackCopy, 'compile' one behind torch.compile. With any
    other precision than 'fp32' the copy is in bf16.
    """
    if speed == "plain" and precision == "fp32":
        return Itself(model)
    copy_ = AttackCopy(model, torch.float32 if precision == "fp32" else torch.bfloat16)
    if speed == "compile":
        on_cuda = next(model.parameters()).is_cuda
        copy_.net = torch.compile(copy_.net, dynamic=False, mode="max-autotune-no-cudagraphs" if on_cuda else None)
    return copy_


def layout(model: nn.Module, speed: str, device: torch.device) -> torch.memory_format:
    """In which order of memory a model trains: channels_last, at speed 'plain' PyTorch's default.

    On a CPU also the default for a network with a strided 1x1 convolution of fewer than 16 input channels: in
    channels_last oneDNN writes the gradient of its weights beyond their memory (uxlfoundation/oneDNN, issue 6035).
    """
    overrun = device.type == "cpu" and any(
        isinstance(module, nn.Conv2d)
        and module.kernel_size == (1, 1)
        and max(module.stride) > 1
        and module.weight.shape[1] < 16
        for module in model.modules()
    )
    return torch.contiguous_format if speed == "plain" or overrun else torch.channels_last


def captured(step: Callable) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A step.Step on a CUDA device, called as it is, but replayed from a CUDA graph: one launch instead of thousands.

    For each of the step's modes and batch sizes, so also for the smaller last batch, the first WARM_UP calls are
    plain steps; then one is recorded. What an epoch changes beside the mode must be a tensor: the learning rate is
    made one here. The same random numbers are drawn as without graphs (the generator is registered with each).
    Nothing in the step may wait for the device. The loss returned is valid until the next call only: a replay writes
    it to the same place.
    """
    device = step.generator.device
    for group in step.optimizer.param_groups:
        group["lr"] = torch.tensor(float(group["lr"]), device=device)
    side, pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()
    calls, graphs = Counter(), {}

    def take(*batch: Tensor) -> Tensor:
        key = (len(batch[0]), *step.mode)
        calls[key] += 1
        if calls[key] <= WARM_UP:
            side.wait_stream(torch.cuda.current_stream(device))  # without it: that of the current device, another one
            with torch.cuda.stream(side):
                loss = step(*batch)
            torch.cuda.current_stream(device).wait_stream(side)
            return loss
        if key not in graphs:
            graph, inputs = torch.cuda.CUDAGraph(), [tensor.clone() for tensor in batch]
            graph.register_generator_state(step.generator)
            with torch.cuda.graph(graph, pool=pool, stream=side):
                loss = step(*inputs)
            graphs[key] = graph, inputs, loss
        graph, inputs, loss = graphs[key]
        for tensor, given in zip(inputs, batch, strict=True):
            tensor.copy_(given)
        graph.replay()
        return loss

    return take
