"""Networks for 32x32 (and 8x8) images: input in [0, 1] as (N, C, H, W), output raw logits (N, K)."""

import re
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sglrlib.checks import one_of


def build_model(
    arch: str, classes: int, shape: tuple[int, int, int], *, normalise: tuple | None = None, seed: int = 0
) -> nn.Module:
    """A freshly initialised network; the same seed gives the same weights and touches no other random stream.

    arch is a name of MODELS, or of another size: 'cnn32', 'bn_cnn32', 'wrn28_4', 'preact_resnet10_16' (depth, width).
    shape is (C, H, W). normalise is None or (mean, std) per channel, applied inside the model.
    Raises UsageError for an unknown arch.
    """
    build, sizes = parse_arch(arch)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed CUDA's generators too
        model = build(*sizes, classes=classes, shape=shape)
    return model if normalise is None else nn.Sequential(Normalise(*normalise), model)


def parse_arch(arch: str) -> tuple[Callable, list[int]]:
    """The builder and the sizes that an architecture's name stands for, e.g. 'wrn28_4' -> (wide_resnet, [28, 4])."""
    if arch in MODELS:
        return MODELS[arch]
    for pattern, build in FAMILIES.items():
        if match := re.fullmatch(pattern, arch):
            sizes = [int(size) for size in match.groups()]
            first, block = DEPTHS.get(build, (1, 1))  # a depth that exists is the first, or some blocks more
            if sizes[0] >= first and (sizes[0] - first) % block == 0 and 0 < min(sizes) <= max(sizes) <= 1000:
                return build, sizes
    one_of("arch", arch, MODELS)


@torch.no_grad()
def flops(model: nn.Module, shape: tuple[int, int, int]) -> int:
    """Floating-point operations of a pass over one image (C, H, W), by torch's own counter; in eval mode after."""
    with FlopCounterMode(display=False) as counter:
        model.eval()(torch.zeros(1, *shape))
    return counter.get_total_flops()


class Normalise(nn.Module):
    """(x - mean) / std per channel, so that attacks work on [0, 1] images."""

    def __init__(self, mean, std):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def cnn(width: int, *, classes: int, shape: tuple[int, int, int], norm: bool = False) -> nn.Module:
    """Three 3x3 convolutions (w, 2w, 4w channels; strides 1, 2, 2) and a linear layer; with norm also BatchNorm.

    Small enough for a laptop's CPU, and without BatchNorm it memorises wrong labels within tens of epochs.
    """
    channels, height, width_px = shape
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((channels, width, 1), (width, 2 * width, 2), (2 * width, 4 * width, 2)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, padding=1), nn.ReLU()]
        if norm:
            layers.insert(-1, nn.BatchNorm2d(outputs))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * width * -(-height // 4) * -(-width_px // 4), classes))


def cifar_resnet(*layers: int, block: str, classes: int, shape: tuple[int, int, int]) -> nn.Module:
    """torchvision's ResNet with the stem for small images: one 3x3 convolution of stride 1, no max-pooling."""
    from torchvision.models import resnet  # here, as it takes two seconds

    net = resnet.ResNet(getattr(resnet, block), list(layers), num_classes=classes)
    net.conv1 = nn.Conv2d(shape[0], 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    net.maxpool = nn.Identity()
    return net


class PreActBlock(nn.Module):
    """BatchNorm and ReLU before each of two 3x3 convolutions (He et al. 2016, arXiv 1603.05027)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        changes = stride != 1 or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        skip = x if self.shortcut is None else self.shortcut(out)
        return self.conv2(F.relu(self.bn2(self.conv1(out)))) + skip


class PreActNet(nn.Module):
    """A stack of pre-activation stages behind a 3x3 stem; the body of PreAct-ResNet-18 and of every WRN."""

    def __init__(self, blocks: int, stem: int, widths: list[int], *, classes: int, shape: tuple[int, int, int]):
        super().__init__()
        self.stem = nn.Conv2d(shape[0], stem, 3, padding=1, bias=False)
        stages, inputs = [], stem
        for stage, width in enumerate(widths):
            for block in range(blocks):
                stages.append(PreActBlock(inputs, width, stride=2 if stage > 0 and block == 0 else 1))
                inputs = width
        self.blocks = nn.Sequential(*stages)
        self.bn = nn.BatchNorm2d(inputs)
        self.fc = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn(self.blocks(self.stem(x))))
        return self.fc(F.adaptive_avg_pool2d(out, 1).flatten(1))


def preact_resnet(depth: int, width: int = 64, *, classes: int, shape: tuple[int, int, int]) -> nn.Module:
    """Four stages of equally many blocks, width to 8 * width channels; depth is 8n + 2.

    preact_resnet18 of width 64 is the network of Rice et al. 2020 (arXiv 2002.11569). Its convolutions start
    He-normal, as the released ResNets do; Rice et al. leave them at PyTorch's default.
    """
    widths = [width, 2 * width, 4 * width, 8 * width]
    return PreActNet((depth - 2) // 8, width, widths, classes=classes, shape=shape)


def wide_resnet(depth: int, widen: int, *, classes: int, shape: tuple[int, int, int]) -> nn.Module:
    """WRN-depth-widen (Zagoruyko & Komodakis 2016, arXiv 1605.07146), without dropout; depth is 6n + 4."""
    return PreActNet((depth - 4) // 6, 16, [16 * widen, 32 * widen, 64 * widen], classes=classes, shape=shape)


FAMILIES = {
    r"cnn(\d{1,4})": cnn,
    r"bn_cnn(\d{1,4})": partial(cnn, norm=True),
    r"wrn(\d{1,3})_(\d{1,2})": wide_resnet,
    r"preact_resnet(\d{1,3})_(\d{1,4})": preact_resnet,
}
DEPTHS = {wide_resnet: (10, 6), preact_resnet: (10, 8)}
MODELS = {
    "cnn16": (cnn, [16]),
    "bn_cnn16": (partial(cnn, norm=True), [16]),
    "resnet18": (partial(cifar_resnet, block="BasicBlock"), [2, 2, 2, 2]),
    "resnet34": (partial(cifar_resnet, block="BasicBlock"), [3, 4, 6, 3]),
    "resnet50": (partial(cifar_resnet, block="Bottleneck"), [3, 4, 6, 3]),
    "preact_resnet18": (preact_resnet, [18]),
    "wrn34_10": (wide_resnet, [34, 10]),
}
