import pytest
import torch
from torch import nn

from sglrlib.checks import UsageError
from sglrlib.judging.evaluate import accuracy, correct
from sglrlib.method.attacks import PGD
from sglrlib.method.datasets import DATASETS
from sglrlib.method.fast import AttackCopy, attack_target
from sglrlib.method.models import MODELS, build_model
from sglrlib.training.train import run_data, run_model


@pytest.mark.parametrize(
    ("arch", "millions"),
    # parameters as published: CIFAR ResNets of the 3x3 stem 11.17, 21.28, 23.52; WRN-34-10 46.2; WRN-28-10 36.5
    [("resnet18", 11.17), ("resnet34", 21.28), ("resnet50", 23.52), ("preact_resnet18", 11.17), ("wrn34_10", 46.16),
     ("wrn28_10", 36.48), ("preact_resnet18_64", 11.17), ("preact_resnet10_16", 0.308), ("cnn16", 0.065)],
)  # fmt: skip
def test_sizes_are_those_of_the_literature(arch, millions):
    with torch.device("meta"):
        model = build_model(arch, 10, (3, 32, 32))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)


@pytest.mark.parametrize("arch", [*(a for a in MODELS if a != "wrn34_10"), "wrn10_2", "preact_resnet10_4", "cnn4"])
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8)])
def test_images_in_logits_out_and_no_early_downsampling(arch, shape):
    model = build_model(arch, 7, shape).eval()
    assert model(torch.rand(2, *shape)).shape == (2, 7)
    if arch.startswith("resnet"):
        assert model.conv1.stride == (1, 1) and isinstance(model.maxpool, nn.Identity)


def test_initial_weights_depend_on_the_seed_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = build_model("cnn16", 10, (1, 8, 8), seed=3)
    assert torch.equal(torch.rand(3), expected)
    second, other = (build_model("cnn16", 10, (1, 8, 8), seed=seed) for seed in (3, 4))
    assert torch.equal(first[0].weight, second[0].weight)
    assert not torch.equal(first[0].weight, other[0].weight)


def test_normalisation_is_inside_the_model():
    dataset = DATASETS["cifar10"]
    plain, inside = (build_model("cnn4", 10, (3, 8, 8), normalise=n) for n in (None, (dataset.mean, dataset.std)))
    x = torch.rand(2, 3, 8, 8)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (dataset.mean, dataset.std))
    assert torch.allclose(inside(x), plain((x - mean) / std), atol=1e-6)


@pytest.mark.parametrize(
    ("arch", "near"),
    [
        ("resnet19", "resnet18"),
        ("WRN34-10", "wrn34_10"),
        ("wrn33_10", "wrn34_10"),
        ("cnn0", "cnn16"),
        ("cnn9999", "cnn16"),
        ("preact_resnet12_16", "preact_resnet18"),
        ("preact_resnet2_16", "preact_resnet18"),
    ],
)
def test_unknown_architectures_suggest_the_nearest(arch, near):
    with pytest.raises(UsageError, match=f"Did you mean '{near}'"):
        build_model(arch, 10, (3, 32, 32))


def trained_a_little(arch, **kwargs):
    """A model whose BatchNorm statistics and affine parameters are not those of its birth."""
    model = build_model(arch, 10, (3, 16, 16), **kwargs).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        for _ in range(3):
            model(torch.rand(16, 3, 16, 16))
    return model


@pytest.mark.parametrize(
    ("arch", "kept"),  # BatchNorms that no convolution precedes, and so cannot be folded
    [("cnn16", 0), ("resnet18", 0), ("resnet50", 0), ("preact_resnet18", 9), ("wrn10_1", 4)],
)
def test_the_attack_copy_is_the_model_in_eval_mode(arch, kept):
    torch.manual_seed(0)
    model = trained_a_little(arch, normalise=((0.5,) * 3, (0.2,) * 3))
    x = torch.rand(4, 3, 16, 16)
    stale = AttackCopy(model)
    model.eval()
    with torch.no_grad():
        for tensor in [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())]:
            tensor.mul_(1.1)
        expected, scale = model(x), model(x).abs().max()
        assert not torch.allclose(stale(x), expected, atol=1e-3 * scale)
        assert torch.allclose(stale.refresh()(x), expected, atol=2e-5 * scale)
        assert torch.allclose(AttackCopy(model, torch.bfloat16)(x), expected, atol=0.1 * scale)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in stale.modules()) == kept
    assert not any(p.requires_grad for p in stale.parameters())
    assert all(p.requires_grad for p in model.parameters())


def test_folded_gradients_equal_the_models():
    torch.manual_seed(0)
    model = trained_a_little("preact_resnet18").eval()
    gradients = []
    for net in (model, AttackCopy(model)):
        x = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
        gradients.append(torch.autograd.grad(net(x).square().sum(), x)[0])
    assert (gradients[0] - gradients[1]).norm() < 1e-5 * gradients[0].norm()


@pytest.mark.parametrize("speed", ["plain", "fast"])
def test_accuracy_is_the_share_of_right_images_whatever_the_batch(small, speed):
    config = small()
    data = run_data(config)
    model = run_model(config).train()
    x, y = data.test.x(), data.test.y
    natural = correct(model, x, y)
    with torch.no_grad():
        by_hand = model(data.test.images.float() / 255).argmax(1) == data.test.y
    assert torch.equal(natural, by_hand)
    assert accuracy(model, x, y) == 100 * by_hand.double().mean()
    attack = config.attack(steps=3)
    assert torch.equal(correct(model, x, y, attack, speed=speed), correct(model, x, y, attack, speed="plain"))
    assert model.training


def test_plain_is_the_model_itself():
    model = build_model("cnn4", 10, (3, 8, 8))
    assert attack_target(model, "plain").refresh() is model
    assert isinstance(attack_target(model, "plain", "bf16"), AttackCopy)  # precision is never silently dropped


def test_an_attack_that_does_nothing_changes_nothing(small):
    test, model = run_data(small()).test, run_model(small())
    assert torch.equal(correct(model, test.x(), test.y, PGD(0, 0, 1)), correct(model, test.x(), test.y))
