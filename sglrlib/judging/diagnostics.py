"""Diagnostics: what a network is like beside its accuracy. Functions of any model and loss; none leaves a trace on it.

DIAGNOSTICS, at the foot, are those that a run records after each epoch when it is asked to.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sglrlib.checks import UsageError, within
from sglrlib.method.attacks import untouched


def calibration_error(confidence: Tensor, right: Tensor, *, bins: int = 15, power: float = 1.0) -> float:
    """Expected calibration error, from 0 to 1: (sum_b n_b / n * |conf_b - acc_b|^m)^(1/m) with m = power.

    confidence (N,): each sample's highest probability; right (N,) bool: whether it is of the right class. The samples
    are held in bins (lo, hi] of equal width by their confidence; conf_b is its mean in a bin, acc_b the share that is
    right. m = 1 is the ECE of Guo et al. 2017 (arXiv 1706.04599), other m the supplement's B.2, which leaves out the
    bar of the conditional expectation.
    """
    within("power", power, 1e-9)
    count, mean, accuracy = reliability(confidence, right, bins=bins)
    gaps = (mean - accuracy).abs()[count > 0] ** power
    return ((count[count > 0] / count.sum() * gaps).sum() ** (1 / power)).item()


def confidence_gap(confidence: Tensor, right: Tensor) -> float:
    """Mean confidence minus accuracy, from -1 to 1: above 0 over-confident, below 0 under-confident.

    It is calibration_error with the signs kept: sum_b n_b / n * (conf_b - acc_b), whatever the bins.
    """
    _, mean, accuracy = reliability(confidence, right, bins=1)
    return (mean - accuracy).item()


def reliability(confidence: Tensor, right: Tensor, *, bins: int = 15) -> tuple[Tensor, Tensor, Tensor]:
    """For each bin of confidence (bins,): how many samples, their mean confidence and their accuracy (NaN if none)."""
    within("bins", bins, 1)
    if confidence.dim() != 1 or confidence.shape != right.shape or not len(right):
        shapes = f"confidence {tuple(confidence.shape)} and right {tuple(right.shape)}"
        raise UsageError(f"{shapes}: expected one number a sample, (N,) and (N,), N > 0.")
    within("confidence", confidence.min().item(), 0, 1)
    within("confidence", confidence.max().item(), 0, 1)
    edges = torch.arange(1, bins, dtype=torch.float64, device=confidence.device) / bins
    place = torch.bucketize(confidence, edges.to(confidence.dtype))
    empty = torch.zeros(bins, dtype=torch.float64, device=place.device)
    count, total, hits = (
        empty.index_add(0, place, values.double()) for values in (torch.ones_like(confidence), confidence, right)
    )
    return count, total / count, hits / count


def standard_error(statistic: Callable[..., float], *values: Tensor, draws: int = 200, seed: int = 0) -> float:
    """The bootstrap's standard error of statistic(*values), whose values are (N,): it is taken on N drawn of the N."""
    generator = torch.Generator().manual_seed(seed)
    drawn = (torch.randint(len(values[0]), (len(values[0]),), generator=generator) for _ in range(draws))
    return torch.tensor([statistic(*(v[index] for v in values)) for index in drawn], dtype=torch.float64).std().item()


def gradient_norms(model: nn.Module, loss: Callable[..., Tensor], batches: Iterable[Sequence]) -> tuple[float, float]:
    """Two norms of the loss's gradient in the weights: of its mean over all samples, and the mean over batches.

    loss(*batch) is a batch's mean loss; each batch starts with a tensor whose length is its number of samples. The
    first is ||(1/N) sum_i grad l_i||_2, the second (1/T) sum_t ||g_t||_2: for equal batches the larger one, since
    E ||g_t||^2 = ||g||^2 + tr Sigma / B. Weight decay is no part of either. The model's mode is the caller's choice.
    """
    total, norms, samples = 0.0, [], 0
    for batch in batches:
        gradient = flat(gradients(model, loss(*batch)))
        norms.append(gradient.norm().item())
        total, samples = total + gradient * len(batch[0]), samples + len(batch[0])
    within("number of batches", len(norms), 1)
    return (total / samples).norm().item(), sum(norms) / len(norms)


def hessian_trace(
    model: nn.Module, loss: Callable[[], Tensor], *, probes: int = 10, seed: int = 0
) -> tuple[float, float]:
    """The trace of the loss's Hessian in the weights by Hutchinson's estimator, and its standard error.

    The mean over a fixed number of probes v of v^T H v, each entry of v being 1 or -1 with equal probability (as
    PyHessian, but without its early stop); H v is the gradient of (gradient . v). The same seed gives the same probes.
    """
    within("probes", probes, 2)
    parameters = list(model.parameters())
    generator = torch.Generator(parameters[0].device).manual_seed(seed)
    gradient = gradients(model, loss(), create_graph=True)
    values = []
    for _ in range(probes):
        signs = [torch.randint(0, 2, p.shape, generator=generator, device=p.device) * 2.0 - 1 for p in parameters]
        product = torch.autograd.grad(gradient, parameters, signs, retain_graph=True, materialize_grads=True)
        values.append(sum((v * h).sum() for v, h in zip(signs, product, strict=True)).double())
    values = torch.stack(values)
    return values.mean().item(), (values.std() / math.sqrt(probes)).item()


def information_in_weights(
    model: nn.Module, reference: nn.Module, loss: Callable[..., Tensor], batches: Sequence[Sequence], samples: int
) -> tuple[float, float]:
    """The information in the weights by PAC-Bayes (PIB, Wang et al. 2022, arXiv 2109.14509): as in the paper, as coded.

    Delta is the model's weights minus the reference's, g_t the gradient of the mean loss(*batch) of batch t of T,
    samples the size n of the training set. The paper: n / T * sum_t (Delta . g_t)^2, a Gaussian whose covariance is
    the inverse Fisher information's. Its code (RyanWangZf/PAC-Bayes-IB pib_utils.py): sum_l (Delta_l . sum_t g_t,l
    / (n / B))^2 over the tensors l named 'weight', B the batch size: gradients are averaged before they are squared,
    so it falls towards zero where the loss converges. That code always takes 10 batches; here the caller chooses, and
    the second number grows with the square of the images in them: compare it only where batches are alike.
    """
    within("number of batches", len(batches), 1)
    before = dict(reference.named_parameters())
    deltas = {name: (p - before[name]).detach() for name, p in model.named_parameters()}
    projected = []  # (T, tensors): Delta_l . g_t,l
    for batch in batches:
        parts = gradients(model, loss(*batch))
        projected.append(torch.stack([(d * g).sum() for d, g in zip(deltas.values(), parts, strict=True)]))
    projected = torch.stack(projected).double()
    weights = torch.tensor(["weight" in name for name in deltas], device=projected.device)
    summed = projected.sum(0)[weights] * len(batches[0][0]) / samples
    return samples * projected.sum(1).square().mean().item(), summed.square().sum().item()


@torch.no_grad()
def features(model: nn.Module, x: Tensor, *, batch_size: int = 500) -> Tensor:
    """What the model's last linear layer is given for images x (N, C, H, W): (N, D), model in eval mode.

    Raises UsageError for a model without a linear layer.
    """
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise UsageError("the model has no nn.Linear, so nothing stands before its last: expected a classifier.")
    found = []
    hook = linear[-1].register_forward_pre_hook(lambda module, inputs: found.append(inputs[0]))
    try:
        with untouched(model):
            for images in x.split(batch_size):
                model(images)
    finally:
        hook.remove()
    return torch.cat(found)


def gradients(model: nn.Module, loss: Tensor, **settings) -> tuple[Tensor, ...]:
    """The gradient of a loss in each of the model's parameters."""
    return torch.autograd.grad(loss, list(model.parameters()), **settings)


def flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


@dataclass(frozen=True)
class View:
    """A split as a network sees it: all its images as they are, and the first M of them attacked.

    x (N, C, H, W), y and y_clean (N,), logits (N, K); x_adv (M, C, H, W), logits_adv (M, K).
    """

    x: Tensor
    y: Tensor
    y_clean: Tensor
    logits: Tensor
    x_adv: Tensor
    logits_adv: Tensor


@dataclass(frozen=True)
class Snapshot:
    """A run after an epoch. model is a copy in eval mode: nothing that a diagnostic does to it reaches the run.

    train is the subset that the curve is measured on, by assigned labels y; in test, y are labels with noise planted
    as in the training labels, or clean ones where those are people's. own_loss(model, x, x_adv, index) is the mean of
    the loss that the method minimises.
    """

    model: nn.Module
    initial: nn.Module
    train: View
    test: View
    own_loss: Callable[..., Tensor]
    samples: int
    batch_size: int

    def batches(self) -> list[tuple[Tensor, ...]]:
        """The attacked training images as (x_adv, y, x, index), in batches of the run's size."""
        t, m = self.train, len(self.train.x_adv)
        parts = t.x_adv, t.y[:m], t.x[:m], torch.arange(m, device=t.y.device)
        return list(zip(*(part.split(self.batch_size) for part in parts), strict=True))

    def hard_loss(self, x_adv: Tensor, y: Tensor, x: Tensor, index: Tensor) -> Tensor:
        """Cross-entropy on the attacked images against the assigned labels."""
        return F.cross_entropy(self.model(x_adv), y)

    def method_loss(self, x_adv: Tensor, y: Tensor, x: Tensor, index: Tensor) -> Tensor:
        """The loss that the run's method and label rule minimise."""
        return self.own_loss(self.model, x, x_adv, index)


def record_calibration(s: Snapshot) -> dict[str, float]:
    """ECE and confidence gap on the test images, as they are and attacked."""
    row = {}
    for kind, logits in (("natural", s.test.logits), ("robust", s.test.logits_adv)):
        confidence, predicted = logits.double().softmax(1).max(1)
        right = predicted == s.test.y_clean[: len(logits)]
        row[f"test_{kind}_ece"] = calibration_error(confidence, right)
        row[f"test_{kind}_gap"] = confidence_gap(confidence, right)
    return row


def record_gradient_norm(s: Snapshot) -> dict[str, float]:
    """Norms of the gradient over the training subset: of its mean in eval mode, of batches in train mode."""
    row = {}
    for name, loss in (("hard", s.hard_loss), ("own", s.method_loss)):
        row[f"gradient_norm_{name}"] = gradient_norms(s.model.eval(), loss, s.batches())[0]
    for name, loss in (("hard", s.hard_loss), ("own", s.method_loss)):
        row[f"batch_gradient_norm_{name}"] = gradient_norms(s.model.train(), loss, s.batches())[1]
    return row


def record_hessian_trace(s: Snapshot, images: int = 200) -> dict[str, float]:
    """Trace of the Hessian of cross-entropy, on the first of the attacked training images, which are held fixed."""
    x_adv, y = s.train.x_adv[:images], s.train.y[: len(s.train.x_adv)][:images]
    trace, error = hessian_trace(s.model, partial(s.hard_loss, x_adv, y, None, None))
    return dict(hessian_trace=trace, hessian_trace_error=error)


def record_information(s: Snapshot) -> dict[str, float]:
    """IIW by both estimators, of cross-entropy on the attacked training images; the reference: the initial weights."""
    paper, code = information_in_weights(s.model, s.initial, s.hard_loss, s.batches(), s.samples)
    return dict(iiw_paper=paper, iiw_code=code)


def record_noisy_labels(s: Snapshot) -> dict[str, float]:
    """Natural accuracy (%) on training images against their clean labels, and on test images against noisy ones; and
    how many of the wrong training labels are predicted as they are assigned, where there are any: memorised.
    """
    against = dict(train_natural_clean=(s.train, s.train.y_clean), test_natural_noisy=(s.test, s.test.y))
    row = {name: 100 * (view.logits.argmax(1) == y).double().mean().item() for name, (view, y) in against.items()}
    wrong = s.train.y != s.train.y_clean
    memorised = (s.train.logits.argmax(1) == s.train.y)[wrong].double().mean().item()
    return row | (dict(train_natural_wrong=100 * memorised) if wrong.any() else {})


DIAGNOSTICS: dict[str, Callable[[Snapshot], dict[str, float]]] = {
    "calibration": record_calibration,
    "gradient_norm": record_gradient_norm,
    "hessian_trace": record_hessian_trace,
    "information": record_information,
    "noisy_labels": record_noisy_labels,
}
