"""Accuracy of a model, natural or under an attack, image by image; a model that cannot be judged is refused."""

import re
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sglrlib.checks import UsageError
from sglrlib.device import evaluation_batch, exact_fp32
from sglrlib.method.attacks import PGD, untouched
from sglrlib.method.autoattack import Part
from sglrlib.method.fast import attack_target, strays

SHAPES = "shape|size|channels|dimension"  # words of torch's, where images are not those that a network takes


class InvalidExample(RuntimeError):
    """An attack returned an image outside its ball or outside [0, 1]: its result would be worth nothing."""


def correct(
    model: nn.Module, x: Tensor, y: Tensor, attack: Callable | None = None, *, classes: int | None = None,
    speed: str = "fast",
) -> Tensor:  # fmt: skip
    """Whether each image is classified as its label, (N,) bool on the CPU; attacked first where attack is given.

    Arguments, and what is raised, as of outputs(). Only an example that the model itself misclassifies counts. Raises
    UsageError for the last part of a cascade too: judge() runs the whole.
    """
    if cascade := getattr(attack, "cascade", ""):
        raise UsageError(
            f"{cascade!r} is a cascade of attacks and this its last part alone, {attack.part!r}: expected a single "
            f"attack; sglrlib.judge(model, x, y, eps_255, attacks=[{cascade!r}]) runs the whole cascade."
        )
    return (outputs(model, x, y, attack, classes=classes, speed=speed)[1].argmax(1) == y).cpu()


def accuracy_interval(flags: Tensor) -> tuple[float, float]:
    """The 95 % interval over the choice of images (Wilson), in percent, of the accuracy that flags (N,) are of."""
    from scipy.stats import binomtest  # here, as it takes a second

    found = binomtest(int(flags.sum()), len(flags)).proportion_ci(method="wilson")
    return 100 * found.low, 100 * found.high


@torch.no_grad()
def outputs(
    model: nn.Module, x: Tensor, y: Tensor, attack: Callable | None = None, *, classes: int | None = None,
    speed: str = "fast",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The images, attacked where attack is given, and the model's logits (N, K) on them.

    x (N, C, H, W) in [0, 1], y (N,). The attack is made on the model's folded copy in fp32, TF32 off; or on the model
    itself with speed 'plain', and where the copy's logits are not the model's, which a warning says. The logits
    returned are the model's own in fp32. The attack's random numbers depend only on an image's place in x. Raises
    UsageError for a model or images that cannot be judged (see refuse), before the first attack step, and for logits
    that are NaN or infinite; InvalidExample where the attack breaks its own rules.
    """
    with untouched(model), exact_fp32():
        refuse(model, x, y, classes)
        if attack:
            if isinstance(attack, (PGD, Part)) and getattr(attack, "part", "") != "square":
                refuse_without_gradient(model, x[:2])
            x = attacked(model, x, y, attack, speed)
        logits = torch.cat([model(images) for images in x.split(batch_size(attack, x))])
        if not (finite := logits.isfinite().all(1)).all():
            first, n = int((~finite).nonzero()[0]), int((~finite).sum())
            what = "attacked images" if attack else "images"
            raise UsageError(
                f"the model returns NaN or infinity for {n} of {len(x)} {what} (first for number {first}), which is no "
                "class: expected finite logits."
            )
        return x, logits


def attacked(model: nn.Module, x: Tensor, y: Tensor, attack: Callable, speed: str) -> Tensor:
    """examples() on the model's copy, if its logits are the model's on the first batch, clean and attacked; else on
    the model itself, and a warning says why: an attack on another function would flatter the model.
    """
    if speed == "plain":
        return examples(model, x, y, attack)
    first = slice(batch_size(attack, x))
    target, why = prepared(model, x[first])
    if not why:
        found = examples(target, x, y, attack)
        if not (why := strays(target, model, found[first])):
            return found
    warnings.warn(f"{why}, so the model itself is attacked, which is slower.", stacklevel=4)
    return examples(model, x, y, attack)


def prepared(model: nn.Module, x: Tensor) -> tuple[nn.Module, str]:
    """The model's copy; and why it cannot be attacked, '' where its logits on images x (N, C, H, W) are the model's.

    It is not compiled, which would not pay for so few steps.
    """
    try:
        target = attack_target(model, "fast").refresh()
        return target, strays(target, model, x)
    except Exception as error:  # the copy's own trouble: what the model itself cannot do, it says under attack
        return model, str(error).partition(": use speed")[0]


def examples(target: nn.Module, x: Tensor, y: Tensor, attack: Callable) -> Tensor:
    """Images like x, attacked on target in eval mode, in whatever precision is set. Raises as outputs() does."""
    generator, size, found = torch.Generator(y.device).manual_seed(0), batch_size(attack, x), []
    for images, labels in zip(x.split(size), y.split(size), strict=True):
        found.append(attack(target, images, labels, generator))
        verify(images, found[-1], attack.eps)
    return torch.cat(found)


def batch_size(attack: Callable | None, x: Tensor) -> int:
    """How many images are attacked at a time: what the attack itself wants, else as many as suit the device."""
    return getattr(attack, "batch_size", 0) or evaluation_batch(x.device)


def accuracy(model: nn.Module, x: Tensor, y: Tensor, attack: Callable | None = None, *, speed: str = "fast") -> float:
    """The share of correct() images, in percent."""
    return 100 * correct(model, x, y, attack, speed=speed).double().mean().item()


def withstood(
    model: nn.Module, x: Tensor, y: Tensor, attack: Callable, before: Tensor, *, classes: int | None = None,
    speed: str = "fast",
) -> Tensor:  # fmt: skip
    """Those of the images flagged in before (N,) that an attack leaves correct, (N,) bool; arguments as of outputs().

    Only the flagged ones are attacked: a cascade calls this part by part, as AutoAttack does.
    """
    standing = before.nonzero().flatten()
    flags = torch.zeros(len(y), dtype=torch.bool)
    if len(standing):
        logits = outputs(model, x[standing], y[standing], attack, classes=classes, speed=speed)[1]
        flags[standing] = (logits.argmax(1) == y[standing]).cpu()
    return flags


def refuse(model: nn.Module, x: Tensor, y: Tensor, classes: int | None = None) -> None:
    """Raise UsageError for what cannot be judged; tried on the first images, model in eval mode.

    Images or labels out of range; a model that cannot take the images (one trained on another dataset) or changes them,
    that returns another number of classes than there are, NaN or infinity, or probabilities instead of raw logits, or
    whose logits for an image depend on the rest of the batch.
    """
    if not (x.dim() == 4 and len(x) == len(y) > 0):
        raise UsageError(
            f"x {tuple(x.shape)} and y {tuple(y.shape)}: expected images (N, C, H, W) and labels (N,), N > 0."
        )
    if not (x.min() >= 0 and x.max() <= 1):
        raise UsageError(f"images range from {x.min():g} to {x.max():g}: expected [0, 1]; normalise inside the model.")
    few = x[:16].clone()
    try:
        logits, again = model(few), model(few)
    except RuntimeError as error:
        shape, of_type = (re.search(words, str(error)) for words in (SHAPES, "type|Double|Half"))
        if isinstance(error, torch.OutOfMemoryError) or not (shape or of_type):
            raise  # the model's own
        hint = ": was it trained on another dataset?" * bool(shape)
        raise UsageError(
            f"the model cannot take images of shape {tuple(x.shape[1:])} and {str(x.dtype)[6:]}{hint} ({error})"
        ) from error
    if not torch.equal(few, x[:16]):
        raise UsageError("the model changes the images that it is given: expected it to leave them as they are.")
    if not isinstance(logits, Tensor):
        raise UsageError(f"the model returns a {type(logits).__name__}: expected the logits alone, a tensor (N, K).")
    wanted = int(y.max()) + 1 if classes is None else classes
    if logits.dim() != 2 or (logits.shape[1] != classes if classes else logits.shape[1] < wanted) or y.min() < 0:
        raise UsageError(
            f"the model returns {tuple(logits.shape)} for {len(x[:16])} images: expected ({len(x[:16])}, {wanted}), "
            f"for labels from {y.min()} to {y.max()}. Was it trained on another dataset?"
        )
    low, high = logits.min().item(), logits.max().item()
    if not logits.isfinite().all():
        raise UsageError(f"the model returns values from {low:g} to {high:g}: expected finite logits.")
    if are_probabilities(logits):
        raise UsageError(
            f"the model returns probabilities (from {low:g} to {high:g}, each row adding up to 1): expected raw "
            "logits, so leave out the softmax."
        )
    half = len(few) // 2 or 1
    if torch.equal(logits, again) and not torch.allclose(model(few[:half]), logits[:half], rtol=1e-3, atol=1e-3):
        raise UsageError(
            "the model's logits for an image depend on the other images of its batch: expected it to judge each by "
            "itself, as with BatchNorm's running statistics."
        )


def refuse_without_gradient(model: nn.Module, x: Tensor) -> None:
    """Raise UsageError where torch cannot differentiate the logits by the images x (N, C, H, W)."""
    with torch.enable_grad():
        logits = model(images := x.clone().requires_grad_())
        if not logits.requires_grad or torch.autograd.grad(logits.sum(), images, allow_unused=True)[0] is None:
            raise UsageError(
                "the model's logits have no gradient in its images (no_grad within its forward?), so this attack would "
                "find nothing: expected a model that torch can differentiate, or a black-box attack, 'square'."
            )


def are_probabilities(outputs: Tensor) -> bool:
    """Whether each row of outputs (N, K) is a probability distribution."""
    sums = outputs.sum(1)
    return bool(outputs.min() >= 0 and torch.allclose(sums, torch.ones_like(sums), atol=1e-4))


def verify(x: Tensor, x_adv: Tensor, eps: float) -> None:
    """Raise InvalidExample unless x_adv is within eps of x (to 1e-6) and in [0, 1]; NaN is refused too."""
    distance, low, high = (x_adv - x).abs().max().item(), x_adv.min().item(), x_adv.max().item()
    if not (distance <= eps + 1e-6 and low >= 0 and high <= 1):
        raise InvalidExample(f"an attack went {distance:g} far (eps = {eps:g}) and to pixels from {low:g} to {high:g}.")
