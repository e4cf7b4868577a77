"""The same primitives on a GPU; skipped where there is none."""

import pytest
import torch

from sglrlib import checkpoint
from sglrlib.train import train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


@pytest.mark.filterwarnings("default")  # torch.compile's own
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("speed", ["plain", "fast", "compile"])
def test_a_run_trains_and_resumes_on_cuda(small, tmp_path, speed, precision):
    config = small(arch="wrn10_1", augment="crop_flip", epochs=2, precision=precision, refine_start=0.0)
    train(config, tmp_path, device="cuda", speed=speed, report=lambda row: None)
    state = checkpoint.load(tmp_path / "last.pt", "cpu")
    assert len(state["curve"]) == 2 and state["labels"]["p"].isfinite().all()
    train(config, tmp_path, device="cpu", report=lambda row: None)  # a finished run has nothing left to do


def test_cuda_and_cpu_agree_on_the_first_epoch(small, tmp_path):
    config = small(arch="cnn4", epochs=1, attack_steps=0, eps_255=0, train_size=200)
    losses = []
    for device in ("cpu", "cuda"):
        train(config, tmp_path / device, device=device, report=lambda row: None)
        losses.append(checkpoint.load(tmp_path / device / "last.pt", "cpu")["curve"][0]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=0.05)  # the order of the batches differs by device
