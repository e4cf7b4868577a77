"""What makes attacks fast without changing what they attack: BatchNorm folded away, channels_last, bf16."""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from sglrlib.checks import UsageError


class AttackCopy(nn.Module):
    """A frozen eval-mode copy of a model for attacks: each BatchNorm behind a convolution is folded into it.

    The copy's logits equal the model's in eval mode up to rounding. dtype is float32 or bfloat16 for convolutions and
    linear layers; input and output stay float32. refresh() takes over the model's present weights and statistics.
    The forward of the model must be one that torch.fx can trace: no branch on the data.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.dtype = dtype
        try:
            traced = fx.symbolic_trace(copy.deepcopy(model).eval())
        except fx.proxy.TraceError as error:
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
            if isinstance(module, nn.BatchNorm2d):  # no convolution before it; its statistics stay float32
                module.float()
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


def attack_target(model: nn.Module, speed: str, precision: str = "fp32"):
    """What an attack on model runs on; call its refresh() after each update of the model.

    speed 'plain' is the model itself (in fp32), 'fast' an AttackCopy, 'compile' one behind torch.compile.
    """
    if speed == "plain" and precision == "fp32":
        return Itself(model)
    copy_ = AttackCopy(model, {"fp32": torch.float32, "bf16": torch.bfloat16}[precision])
    if speed == "compile":
        copy_.net = torch.compile(copy_.net)
    return copy_
