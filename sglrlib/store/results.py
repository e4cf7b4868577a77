"""Results: what is kept of a finished run, one small JSON file, among this machine's runs or committed."""

import base64
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import fastjsonschema
import numpy as np
import torch
from torch import Tensor

from sglrlib.config import RunConfig, make_config
from sglrlib.judging.evaluate import accuracy_interval
from sglrlib.method.datasets import DATASETS
from sglrlib.paths import RESULTS, RUNS
from sglrlib.source import CODE
from sglrlib.store import checkpoint
from sglrlib.store.checkpoint import Damaged, StoreError

CHECKPOINTS = ("best", "last")


@dataclass(frozen=True)
class Result:
    """What is kept of a finished run.

    curve: one row an epoch, accuracies in percent. sizes: images in each split, and 'wrong_labels' in the training
    split. evaluations: checkpoint ('best', 'last') -> column ('natural' or an attack) -> packed 'flags' of the test
    images, and where and how they were computed. provenance: device, versions and seconds of the training.
    """

    config: RunConfig
    curve: list[dict]
    best_epoch: int
    sizes: dict
    evaluations: dict[str, dict[str, dict]]
    provenance: dict

    def has(self, column: str, images: int = 0) -> bool:
        """Whether both checkpoints have a column, on so many of the first test images at least (0: on all)."""
        test = self.sizes["test"]
        wanted = test if column == "natural" else min(images or test, test)
        return all(self.holds(which, column, wanted) for which in CHECKPOINTS)

    def holds(self, which: str, column: str, images: int) -> bool:
        """Whether a checkpoint has a column, on so many of the first test images, by the attack's present code."""
        entry = self.evaluations[which].get(column)
        return bool(entry) and entry.get("code", "") == code_of(column) and len(self.flags(which, column)) >= images

    def flags(self, which: str, column: str) -> Tensor:
        """Whether each test image is classified correctly, (n,) bool: as it is, or under an attack.

        Under an attack an image counts if it is correct as it is, withstood the attack, and all before it in a chain.
        """
        return unpack(self.evaluations[which][column]["flags"])

    def confidence(self, which: str, attack: str) -> tuple[Tensor, Tensor, Tensor]:
        """Of n test images, natural or under an attack: the highest probability of each and the probability of its
        label, both (n,) float64, and whether the two are one, (n,) bool. columns.with_confidence() asks for them.
        """
        entry = self.evaluations[which][f"confidence {attack}"]
        return unpack_shares(entry["highest"]), unpack_shares(entry["labelled"]), unpack(entry["flags"])

    def n(self, column: str) -> int:
        """The number of test images behind an accuracy."""
        return min(len(self.flags(which, column)) for which in CHECKPOINTS)

    def accuracy(self, which: str, column: str) -> float:
        """Accuracy in percent."""
        return 100 * self.flags(which, column)[: self.n(column)].double().mean().item()

    @property
    def at_chance(self) -> bool:
        """Whether the last checkpoint may be guessing: the 95 % interval (Wilson) of its natural accuracy reaches down
        to one in so many classes as there are.
        """
        low, _ = accuracy_interval(self.flags("last", "natural"))
        return low <= 100 / DATASETS[self.config.dataset].classes

    def drop(self, column: str) -> float:
        """Best minus last checkpoint, in points: the Diff of the paper's tables."""
        return self.accuracy("best", column) - self.accuracy("last", column)

    def with_flags(self, which: str, column: str, flags: Tensor, **how: object) -> "Result":
        """This result with one more column; how: device, versions, seconds."""
        code = {name: text for name, text in (("code", code_of(column)),) if text}
        entry = dict(flags=pack(flags), **code, **how)
        checkpoints = self.evaluations | {which: self.evaluations.get(which, {}) | {column: entry}}
        return dataclasses.replace(self, evaluations=checkpoints)


def code_of(column: str) -> str:
    """The fingerprint of the attack that a column is named after, '' where it is the library's."""
    return CODE.get(("attack", column.removeprefix("confidence ").split(" from ")[0]), "")


def paired(ones: list[Result], others: list[Result]) -> list[tuple[Result, Result]]:
    """The runs of the seeds that both lists have, so that one that failed takes only its own seed out."""
    by_seed = {run.config.seed: run for run in others}
    return [(run, by_seed[run.config.seed]) for run in ones if run.config.seed in by_seed]


def stored(
    config: RunConfig, columns: Sequence[str] = (), images: int = 0, *, committed: bool = False
) -> Result | None:
    """The result of a configuration from this machine's runs, else None; with committed, the committed ones count too.

    Where both are there, this machine's is taken if it has all the columns, or the committed one does not.
    """
    paths = [RUNS / config.id / "result.json"] + [RESULTS / f"{config.id}.json"] * committed
    found = [read(config, path) for path in paths if path.exists()]
    whole = [result for result in found if all(result.has(column, images) for column in columns)]
    return next(iter(whole + found), None)


def publish(result: Result) -> Path:
    """Copy a result among the committed ones, below data/results; columns that only the one there has stay."""
    path = RESULTS / f"{result.config.id}.json"
    if path.exists():
        known = read(result.config, path).evaluations
        merged = {which: known[which] | result.evaluations[which] for which in CHECKPOINTS}
        result = dataclasses.replace(result, evaluations=merged)
    write(path, result)
    return path


def write(path: Path, result: Result) -> None:
    """Write a result as JSON, whole or not at all, with a digest of all it says."""
    values = json.loads(json.dumps(dataclasses.asdict(result)))
    checkpoint.write(path, (json.dumps(values | dict(sha256=digest(values)), indent=1) + "\n").encode())


def read(config: RunConfig, path: Path) -> Result:
    """What write() wrote. Raises Damaged for anything else: an edited number, another configuration's result."""
    remedy = "Restore it, or remove it: with train = True the run's checkpoints are then judged again."
    try:
        values = json.loads(path.read_bytes())
        written = values.pop("sha256")
        whole = digest(values) == written
        check(values)
    except (ValueError, AttributeError, LookupError, TypeError, RecursionError) as error:
        raise Damaged(f"{path} is no result of this library ({type(error).__name__}: {error}). {remedy}") from error
    if not whole:
        raise Damaged(f"{path} was edited or damaged: it does not have the SHA-256 that stands in it. {remedy}")
    own = values.pop("config")
    own |= own.pop("method_options") | own.pop("label_options")
    try:
        known = make_config(**own)
    except Exception as error:  # whatever its values make of it
        raise StoreError(f"{path} was written by another version of this library: {error}") from error
    if known.id != config.id:
        raise Damaged(f"{path} holds another configuration than its name says; remove it.")
    return Result(config=config, **values)


def check(values: dict) -> None:
    """Raise ValueError for what SCHEMA does not allow, and for flags that are not of the test split."""
    valid(values)
    for entry in [entry for columns in values["evaluations"].values() for entry in columns.values()]:
        n, bits = entry["flags"].split(":")
        if int(n) > values["sizes"]["test"] or len(base64.b64decode(bits, validate=True)) != -(-int(n) // 8):
            raise ValueError(f"flags of {n} images in {len(bits)} characters, of {values['sizes']['test']} test images")


_COUNT = dict(type="integer", minimum=0, maximum=10_000_000)
_PACKED = dict(type="string", maxLength=10_000_000, pattern="^[A-Za-z0-9+/]*={0,2}$")
_COLUMN = dict(
    type="object", required=["flags"],
    properties=dict(
        flags=dict(type="string", pattern="^[0-9]{1,8}:[A-Za-z0-9+/]*={0,2}$"), highest=_PACKED, labelled=_PACKED,
        seconds=dict(type="number", minimum=0), code=dict(type="string"), device=dict(type="string"),
    ),
)  # fmt: skip
# A result as JSON, without its sha256: what another project has to know to read one. Times are in seconds.
SCHEMA = dict(
    type="object", additionalProperties=False,
    required=["config", "curve", "best_epoch", "sizes", "evaluations", "provenance"],
    properties=dict(
        config=dict(
            type="object", required=["method_options", "label_options"],
            properties=dict(method_options=dict(type="object"), label_options=dict(type="object")),
        ),
        curve=dict(type="array", maxItems=100_000, items=dict(type="object", additionalProperties=dict(type="number"))),
        best_epoch=dict(_COUNT, minimum=1),
        sizes=dict(
            type="object", required=["train", "test"], additionalProperties=_COUNT
        ),
        evaluations=dict(
            type="object", required=list(CHECKPOINTS), additionalProperties=False,
            properties={which: dict(type="object", additionalProperties=_COLUMN) for which in CHECKPOINTS},
        ),
        provenance=dict(type="object", properties=dict(seconds=dict(type="number"))),
    ),
)  # fmt: skip
valid = fastjsonschema.compile(SCHEMA)


def digest(values: dict) -> str:
    """The SHA-256 of a result's values, however the file lays them out."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def pack(flags: Tensor) -> str:
    """Flags (n,) bool as short text: their number, and their bits in base64."""
    return f"{len(flags)}:{base64.b64encode(np.packbits(flags.numpy())).decode()}"


def unpack(text: str) -> Tensor:
    """What pack() packed."""
    n, bits = text.split(":")
    return torch.from_numpy(np.unpackbits(np.frombuffer(base64.b64decode(bits), np.uint8), count=int(n)).astype(bool))


def pack_shares(values: Tensor) -> str:
    """Numbers (n,) from 0 to 1 as short text: 16 bits each, in base64."""
    return base64.b64encode((values.double() * 65535).round().numpy().astype("<u2")).decode()


def unpack_shares(text: str) -> Tensor:
    """What pack_shares() packed, to within 1 / 131,070."""
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), "<u2") / 65535)
