"""No model is flattered: odd ones get the flags of an attack on themselves, hostile ones an error that says why."""

import functools
import warnings

import pytest
import torch
import torch.nn.functional as F
from pyautoattack.autopgd_base import APGDAttack
from torch import nn
from torch.nn.utils import parametrizations
from torch.optim.swa_utils import AveragedModel

from sglrlib.checks import UsageError
from sglrlib.judging.evaluate import correct, withstood
from sglrlib.judging.report import judge
from sglrlib.method.attacks import PGD
from sglrlib.method.autoattack import Part, Square
from sglrlib.method.data import load_data
from sglrlib.method.fast import AttackCopy
from sglrlib.method.models import build_model

EPS, STEPS, N = 0.1, 5, 40
DIGITS = load_data("digits")
X = DIGITS.test.x(slice(N))


@functools.cache
def weights() -> dict:
    """Of a network after two epochs on digits."""
    model, train = build_model("bn_cnn8", 10, (1, 8, 8), seed=3), DIGITS.train
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9)
    for x, y in [*zip(train.x().split(50), train.y.split(50), strict=True)] * 2:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.state_dict()


def net() -> nn.Module:
    model = build_model("bn_cnn8", 10, (1, 8, 8))
    model.load_state_dict(weights())
    return model.eval()


class Around(nn.Module):
    """A network whose forward is what a function makes of the network and the images."""

    def __init__(self, forward, inner=None):
        super().__init__()
        self.inner, self.does = inner or net(), forward

    def forward(self, x):
        return self.does(self.inner, x)


def norms(model):
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def hooked(register, hook, at=lambda model: model):
    model = net()
    getattr(at(model), register)(hook)
    return model


def parametrized(how):
    model = net()
    how(next(module for module in model.modules() if isinstance(module, nn.Conv2d)))
    return model


class Twice(nn.Module):
    """A convolution used twice, behind it a BatchNorm each time: the same one, or another."""

    def __init__(self, same):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.conv, self.out = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(288, 10)
        self.one, self.other = (nn.BatchNorm2d(8, affine=True) for _ in range(2))
        with torch.no_grad():
            self.other.running_mean += 0.1
            self.other.running_var *= 0.01
        self.other = self.one if same else self.other

    def forward(self, x):
        x = self.one(self.conv(self.first(x))).relu()
        return self.out(self.other(self.conv(x)).relu().flatten(1))


class Tied(nn.Module):
    """Two convolutions that share a weight, and one BatchNorm behind each."""

    def __init__(self):
        super().__init__()
        inner = Twice(same=False)
        self.inner, self.again = inner, nn.Conv2d(8, 8, 3, padding=1)
        self.again.weight = inner.conv.weight

    def forward(self, x):
        x = self.inner.one(self.inner.conv(self.inner.first(x))).relu()
        return self.inner.out(self.inner.other(self.again(x)).relu().flatten(1))


class Counting(nn.Module):
    """Counts its calls in a buffer, or with turn adds what it counted to a logit."""

    def __init__(self, turn):
        super().__init__()
        self.inner, self.turn = net(), turn
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.inner(x) + self.turn * F.one_hot(torch.tensor(3), 10) * self.calls


class Late(nn.Module):
    """Turns its logits round from some call on, which Python alone counts: its copy is of before."""

    def __init__(self, after):
        super().__init__()
        self.inner, self.after, self.calls = net(), after, 0

    def forward(self, x):
        self.calls += 1
        return -self.inner(x) if self.calls > self.after else self.inner(x)


class Wary(nn.Module):
    """Gives other logits to images that somebody differentiates by: its gradients are those of another network."""

    def __init__(self):
        super().__init__()
        self.inner, self.bait = net(), build_model("cnn4", 10, (1, 8, 8), seed=9)

    def forward(self, x):
        return self.bait(x) if x.requires_grad else self.inner(x)


def autocast(inner, x):
    with torch.autocast("cpu", torch.bfloat16):
        return inner(x).float()


def without_gradient(context):
    def forward(inner, x):
        with context():
            return inner(x)

    return forward


def in_place(inner, x):
    return inner(x.mul_(0.9))


def nan_from(where):
    return lambda inner, x: torch.where(where(x)[:, None], torch.nan, inner(x))


def out_of_memory(inner, x):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def unlicensed(inner, x):
    raise RuntimeError("the licence has run out")


# Those that are judged as they are: the flags must be those of pyautoattack on the model itself.
ODD = {
    "a plain network": net,
    "a hook on its root": lambda: hooked("register_forward_hook", lambda m, i, out: out.roll(1, 1)),
    "a pre-hook on its root": lambda: hooked("register_forward_pre_hook", lambda m, i: (1 - i[0],)),
    "a hook on a BatchNorm": lambda: hooked("register_forward_hook", lambda m, i, out: -out, lambda n: norms(n)[0]),
    "a backward hook that turns gradients round": lambda: hooked(
        "register_full_backward_hook", lambda m, gi, go: tuple(-g if g is not None else g for g in gi)
    ),
    "a backward pre-hook": lambda: hooked("register_full_backward_pre_hook", lambda m, go: (-go[0],)),
    "weight normalisation": lambda: parametrized(parametrizations.weight_norm),
    "spectral normalisation": lambda: parametrized(parametrizations.spectral_norm),
    "a convolution twice, one BatchNorm": lambda: Twice(same=True),
    "a convolution twice, two BatchNorms": lambda: Twice(same=False),
    "tied weights": Tied,
    "a buffer that counts": lambda: Counting(turn=0),
    "autocast within": lambda: Around(autocast),
    "float64 within": lambda: Around(lambda inner, x: inner(x.double()), net().double()),
    "a branch on the number of images": lambda: Around(lambda inner, x: inner(x) if len(x) > 10 else 1 * inner(x)),
    "a branch on the data": lambda: Around(lambda inner, x: inner(x) if x.sum() > 0 else -inner(x)),
    "a wary one": Wary,
    "torch.compile": lambda: torch.compile(net(), backend="eager"),
    "torch.jit.trace": lambda: torch.jit.trace(net(), X[:2]),
    "DataParallel": lambda: nn.DataParallel(net()),
    "AveragedModel": lambda: AveragedModel(net()).eval(),
    "frozen weights": lambda: net().requires_grad_(False),
    "in train mode": lambda: net().train(),
    "quantised by hand": lambda: Around(lambda inner, x: inner(x + ((16 * x).round() / 16 - x).detach())),
}

# Those that cannot be judged: why, in the error's words.
HOSTILE = {
    "no_grad within": (lambda: Around(without_gradient(torch.no_grad)), UsageError, "no gradient in its images"),
    "inference_mode within": (lambda: Around(without_gradient(torch.inference_mode)), UsageError, "no gradient"),
    "detached images": (lambda: Around(lambda inner, x: inner(x.detach())), UsageError, "no gradient in its images"),
    "a tuple": (lambda: Around(lambda inner, x: (inner(x), x)), UsageError, "returns a tuple: expected the logits"),
    "a dictionary": (lambda: Around(lambda inner, x: dict(out=inner(x))), UsageError, "returns a dict"),
    "probabilities": (lambda: Around(lambda inner, x: inner(x).softmax(1)), UsageError, "expected raw logits"),
    "one logit": (lambda: Around(lambda inner, x: inner(x)[:, :1]), UsageError, r"returns \(16, 1\) for 16 images"),
    "float64 weights": (lambda: net().double(), UsageError, r"shape \(1, 8, 8\) and float32 \("),
    "float16 weights": (lambda: net().half(), UsageError, r"shape \(1, 8, 8\) and float32 \("),
    "another dataset's": (lambda: build_model("cnn4", 10, (3, 8, 8)), UsageError, "trained on another dataset"),
    "images changed in place": (lambda: Around(in_place), UsageError, "changes the images"),
    "a batch's own statistics": (
        lambda: Around(lambda inner, x: inner(F.batch_norm(x, None, None, training=True))), UsageError, "of its batch",
    ),
    "NaN for image 30": (lambda: Around(nan_from(lambda x: (x == X[30]).all((1, 2, 3)))), UsageError, "number 30"),
    "NaN under attack": (
        lambda: Around(nan_from(lambda x: ~(x[:, None] == X).all((2, 3, 4)).any(1))), UsageError, "attacked images",
    ),
    "quantised by torch": (
        lambda: torch.ao.quantization.quantize_dynamic(net(), {nn.Linear}), UsageError, "no gradient in its images",
    ),
    "out of memory": (lambda: Around(out_of_memory), torch.OutOfMemoryError, "Tried to allocate 2.00 GiB"),
    "an error of its own": (lambda: Around(unlicensed), RuntimeError, "^the licence has run out$"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def quiet():
    """That the model itself is attacked is said each time; some odd models are deprecated by torch, too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@torch.no_grad()
def labels(model):
    return model.eval()(X).float().argmax(1)


@pytest.mark.parametrize("name", ODD)
def test_an_odd_model_gets_the_flags_of_an_attack_on_itself(name, record_property):
    model, ours = ODD[name](), ODD[name]()
    y = labels(model)
    attack = APGDAttack(model, n_iter=STEPS, norm="Linf", eps=EPS, seed=0, loss="ce", rho=0.75, device="cpu")
    with torch.no_grad(), torch.random.fork_rng():
        expected = model(attack.perturb(X.clone(), y)).argmax(1) == y
    found = withstood(ours, X, y, Part(EPS, "apgd_ce", STEPS), torch.ones(N, dtype=torch.bool))
    assert torch.equal(found, expected) and 0 < found.sum() < N
    record_property("parameters", f"{name}: {int(found.sum())} of {N} images stand, as for pyautoattack")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_model_is_refused_with_the_cause(name, record_property):
    build, error, said = HOSTILE[name]
    with pytest.raises(error, match=said) as raised:
        model = build()
        for attack in (None, PGD(EPS, EPS / 4, STEPS)):
            correct(model, X, labels(net()), attack)
    record_property("parameters", f"{name}: {raised.type.__name__}: {str(raised.value)[:90]}")


def test_a_randomised_model_is_attacked_itself_and_suspected():
    model = Around(lambda inner, x: inner(x + 0.2 * torch.randn_like(x)))
    with pytest.warns(UserWarning, match="computes something else .*, so the model itself is attacked"):
        report = judge(model, X, labels(net()), 255 * EPS, attacks=["pgd_5"])
    assert "the model is deterministic" in report.suspected


def test_a_copy_that_strays_on_attacked_images_alone_is_not_believed():
    """The first five calls are those before the attack, on clean images: there the copy is right."""
    for after, alike in ((5, False), (100, True)):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            correct(Late(after), X, labels(net()), PGD(EPS, EPS / 4, STEPS))
        assert (not [w for w in said if "so the model itself is attacked" in str(w.message)]) == alike


def test_training_on_a_copy_that_would_not_follow_is_refused():
    for model, has in ((ODD["weight normalisation"](), "parametrizations"), (ODD["a hook on its root"](), "hooks on")):
        with pytest.raises(UsageError, match=f"this model has {has}.*use speed = 'plain'"):
            AttackCopy(model)


def test_a_model_without_gradient_can_still_be_queried():
    model = Around(without_gradient(torch.no_grad))
    assert correct(model, X, labels(net()), Square(EPS, iterations=20)).sum() <= N


def test_a_model_that_turns_with_its_calls_is_judged_by_what_it_says_itself():
    """No copy sees how often it was called, so the copy strays from it and it is attacked itself."""
    with pytest.warns(UserWarning, match="so the model itself is attacked"):
        correct(Counting(turn=1.0), X, labels(net()), PGD(EPS, EPS / 4, STEPS))
