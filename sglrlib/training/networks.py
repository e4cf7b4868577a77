"""A run's networks: at hand or not, loaded, suspected, exported, kept for everybody."""

import json
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import nn

from sglrlib.checks import UsageError, one_of
from sglrlib.config import RunConfig
from sglrlib.device import pick_device
from sglrlib.judging.sanity import Check, suspect
from sglrlib.method.datasets import DATASETS
from sglrlib.paths import RUNS, WEIGHTS
from sglrlib.store import checkpoint
from sglrlib.store.results import CHECKPOINTS, stored
from sglrlib.training.train import run_data, run_model


def load_model(config: RunConfig, which: str = "best", device: str = "cpu") -> nn.Module:
    """A finished run's network in eval mode: images (N, C, H, W) in [0, 1] in, logits (N, K) out.

    which is 'best' or 'last'. It is that of this machine's run, else a committed one. Raises UsageError where there is
    neither.
    """
    one_of("which", which, CHECKPOINTS)
    folder, committed = RUNS / config.id, committed_weights(config, which)
    if not holds(config):
        raise UsageError(f"{config.id} has no checkpoint in {RUNS}, and none in {WEIGHTS}: run() it first.")
    model = run_model(config)
    own = (folder / "last.pt").exists()
    model.load_state_dict(checkpoint.weights(folder, which, config.id) if own else load_file(committed))
    return model.to(device).eval()


def export(config: RunConfig, which: str = "best", path: str | Path = "") -> Path:
    """Write a finished run's weights as safetensors, the configuration (make_config's arguments) as JSON in its header,
    and beside them model_info() as JSON.

    Returns where. path '' is best.safetensors or last.safetensors in the run's folder. Raises as load_model() does.
    """
    path = Path(path or RUNS / config.id / f"{which}.safetensors")
    save(config, which, path)
    path.with_suffix(".json").write_text(json.dumps(model_info(config, which), indent=2) + "\n")
    return path


def save(config: RunConfig, which: str, path: Path) -> None:
    """Write the weights alone."""
    state = {name: tensor.contiguous() for name, tensor in load_model(config, which).state_dict().items()}
    save_file(state, path, metadata=dict(config=json.dumps(config.flat()), which=which, format="pt"))


def model_info(config: RunConfig, which: str = "best") -> dict:
    """What RobustBench's model zoo asks of a network, by the names of its model_info/*.json, and what it has to know
    beside. clean_acc and reported (AutoAttack) are the result's, None where it has none, with the number of
    test images in images: RobustBench takes all 10,000. Its own field autoattack_acc is for RobustBench to fill.
    """
    data, run = DATASETS[config.dataset], stored(config, committed=True)
    columns = dict(clean_acc="natural", reported="autoattack")
    flags = {name: run.flags(which, column) for name, column in columns.items() if run and run.has(column, 1)}
    return dict(
        link="https://arxiv.org/abs/2403.09101", name=f"{config.title}, SGLR companion", authors="", venue="",
        additional_data=False, number_forward_passes=1, dataset=config.dataset, architecture=config.arch,
        eps=f"{config.eps_255:g}/255", threat_model="Linf",
        **{name: f"{100 * flags[name].double().mean():.2f}" if name in flags else None for name in columns},
        images={name: len(those) for name, those in flags.items()},
        input=dict(shape=data.shape, low=0, high=1),
        normalisation=dict(mean=data.mean, std=data.std) if config.normalise else None, id=config.id, which=which,
    )  # fmt: skip


def holds(config: RunConfig) -> str:
    """Whose networks of a run load_model() gives: 'trained here', 'committed below data/weights', '' for none."""
    if (RUNS / config.id / "last.pt").exists():
        return "trained here"
    return "committed below data/weights" * committed_weights(config, "last").exists()


def committed_weights(config: RunConfig, which: str) -> Path:
    """Where a run's network is kept for everybody, if it is one of those few."""
    return WEIGHTS / f"{config.id}-{which}.safetensors"


def keep_weights(config: RunConfig) -> None:
    """Put both networks of a finished run among the committed ones."""
    WEIGHTS.mkdir(parents=True, exist_ok=True)
    for which in CHECKPOINTS:
        save(config, which, committed_weights(config, which))


def suspected(config: RunConfig, which: str = "best", *, images: int = 200, device: str = "") -> list[Check]:
    """The five checks of sanity.suspect() on a finished run's network, with the first of its test images."""
    device = pick_device(device)
    test = run_data(config).test.first(images).to(device)
    return suspect(load_model(config, which, device), test.x(), test.y, config.eps_255 / 255)
