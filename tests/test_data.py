import hashlib
import io
import os
import pickle
import signal
import subprocess
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.datasets import CIFAR10

from sglrlib.checks import UsageError
from sglrlib.config import make_config
from sglrlib.judging.diagnostics import DIAGNOSTICS, View
from sglrlib.method import files
from sglrlib.method.data import AUGMENTS, HUMAN, NOISES, Split, crop_flip, load_data, planted, stratified_order
from sglrlib.method.datasets import DATASETS, human_labels
from sglrlib.method.files import DataError, Human
from sglrlib.training.jobs import check_data
from sglrlib.training.measure import diagnose
from sglrlib.training.train import run_data


def test_digits_splits_are_disjoint_whole_and_fixed():
    d = load_data("digits", train_size=500, val_size=297, seed=1)
    assert (len(d.train), len(d.val), len(d.test)) == (500, 297, 1000)
    assert d.train.images.shape[1:] == DATASETS["digits"].shape
    assert d.train.images.dtype == torch.uint8 and d.train.images.max() == 255
    everything = torch.cat([d.train.images, d.val.images, d.test.images]).flatten(1)
    assert len(everything.unique(dim=0)) == 1797
    again = load_data("digits", train_size=500, val_size=297, seed=2)
    assert torch.equal(again.val.images, d.val.images) and torch.equal(again.train.images, d.train.images)


def test_a_part_of_the_training_images_is_drawn_by_the_seed():
    first, again, other = (load_data("digits", train_size=200, val_size=297, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.train.images, again.train.images)
    assert torch.equal(first.val.images, other.val.images) and torch.equal(first.test.images, other.test.images)
    shared = torch.cat([first.train.images, other.train.images]).flatten(1)
    assert 300 < len(shared.unique(dim=0)) < 340  # 200 of 500, twice: 80 in common is expected
    for drawn in (first, other):
        held_out = torch.cat([drawn.train.images, drawn.val.images, drawn.test.images]).flatten(1)
        assert len(held_out.unique(dim=0)) == 200 + 297 + 1000
        assert torch.bincount(drawn.train.y_clean, minlength=10).sub(20).abs().max() <= 2


def test_a_sample_knows_its_place_in_the_datasets_own_files():
    """Through validation, drawing, noise and folds, also of test images."""
    asked = dict(train_size=200, val_size=297, test_size=400, seed=1, folds=5, fold=2)
    loaded = load_data("digits", **asked, noise="symmetric_wrong", noise_rate=0.5)
    train, test = ([torch.from_numpy(part) for part in parts] for parts in DATASETS["digits"].load())
    for split, (images, y) in ((loaded.train, train), (loaded.val, train), (loaded.test, test)):
        assert split.position.dtype == torch.int64 and len(split.position) == len(split)
        assert torch.equal(split.images, images[split.position]) and torch.equal(split.y_clean, y[split.position])
    assert not set(loaded.train.position.tolist()) & set(loaded.val.position.tolist())


def test_every_prefix_is_stratified():
    y = np.repeat(np.arange(5), [100, 100, 100, 50, 50])
    order = stratified_order(y, 0)
    assert sorted(order) == list(range(400))
    for n in (40, 100, 333):
        counts = np.bincount(y[order[:n]], minlength=5)
        assert np.abs(counts - n * np.array([2, 2, 2, 1, 1]) / 8).max() <= 2


@pytest.mark.parametrize(("kind", "share"), [("symmetric", 0.9), ("symmetric_wrong", 1.0), ("class_dependent", 1.0)])
def test_noise_conventions(kind, share):
    y = torch.arange(20_000) % 10
    split = Split(torch.zeros(20_000, 1, 1, 1, dtype=torch.uint8), y, y, torch.arange(20_000))
    spoilt = planted(split, DATASETS["digits"], kind, 0.4, seed=0)
    noisy, wrong = spoilt.y, spoilt.y != y
    assert wrong.double().mean().item() == pytest.approx(0.4 * share, abs=0.01)
    offsets = torch.bincount((noisy - y)[wrong] % 10, minlength=10)
    assert (offsets[1:] > 0).all() if kind != "class_dependent" else offsets[1] == wrong.sum()
    assert (torch.bincount(noisy[wrong], minlength=10) > 600).all()  # all classes are drawn
    if kind != "symmetric":
        assert wrong.sum() == 8000
    assert torch.equal(spoilt.y_clean, y) and torch.equal(spoilt.images, split.images)


@pytest.fixture
def alike():
    """2,000 times one image of 64 pixels, no two of them equal: (p, p + 64, p + 128) in its three channels."""
    image = torch.arange(192, dtype=torch.uint8).view(1, 3, 8, 8)
    y = torch.arange(2000) % 10
    return Split(image.repeat(2000, 1, 1, 1), y, y, torch.arange(2000))


def spoil(split, kind, rate, seed=0):
    return planted(split, DATASETS["cifar10"], kind, rate, seed=seed)


@pytest.mark.parametrize("kind", [kind for kind in NOISES if kind not in HUMAN])
def test_noise_follows_from_its_seed_and_none_is_none(alike, kind):
    first, again, other = (spoil(alike, kind, 0.4, seed) for seed in (0, 0, 1))
    assert torch.equal(first.images, again.images) and torch.equal(first.y, again.y)
    assert not (torch.equal(first.images, other.images) and torch.equal(first.y, other.y))
    none = spoil(alike, kind, 0.0)
    assert torch.equal(none.images, alike.images) and torch.equal(none.y, alike.y)


@pytest.mark.parametrize("kind", ["gaussian", "random_pixels", "shuffled_pixels"])
def test_image_noise_changes_its_share_of_the_images_and_no_label(alike, kind):
    before, spoilt = alike.images.clone(), spoil(alike, kind, 0.3003)
    assert spoilt.images.dtype == torch.uint8 and spoilt.images.shape == before.shape
    assert (spoilt.images != before).flatten(1).any(1).sum() == int(0.3003 * 2000)
    assert torch.equal(spoilt.y, alike.y) and torch.equal(spoilt.y_clean, alike.y)
    assert torch.equal(alike.images, before)  # what was handed over is left alone


@pytest.mark.parametrize(("kind", "orders"), [("random_pixels", 2000), ("shuffled_pixels", 1)])
def test_pixels_change_places_whole_in_as_many_orders_as_the_kind_says(alike, kind, orders):
    pixels = spoil(alike, kind, 1.0).images.flatten(2).int()  # (N, 3, 64)
    assert (pixels[:, 1:] == pixels[:, :1] + torch.tensor([[64], [128]])).all()
    assert (pixels[:, 0].sort(1).values == torch.arange(64)).all()
    assert len(pixels.unique(dim=0)) == orders


def test_gaussian_images_have_the_datasets_mean_and_std_but_for_clipping(alike):
    drawn = spoil(alike, "gaussian", 1.0).images.double() / 255
    shares = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    for channel, mean, std in zip(drawn.unbind(1), DATASETS["cifar10"].mean, DATASETS["cifar10"].std, strict=True):
        clipped = torch.distributions.Normal(mean, std).icdf(shares).clamp(0, 1)
        assert channel.mean().item() == pytest.approx(clipped.mean().item(), abs=0.004)
        assert channel.std().item() == pytest.approx(clipped.std().item(), abs=0.004)
    pixels = drawn.flatten(2)[:, :, ::9].flatten(1).T.corrcoef().fill_diagonal_(0)  # of all channels
    assert pixels.abs().max() < 0.1 and len(drawn.unique(dim=0)) == 2000


def test_folds_partition_the_training_split_and_keep_its_labels():
    asked = dict(val_size=95, test_size=50, noise="symmetric", noise_rate=0.5)
    whole, left_out = load_data("digits", **asked), []
    place = {image.numpy().tobytes(): i for i, image in enumerate(whole.train.images)}
    for fold in range(5):
        part = load_data("digits", **asked, folds=5, fold=fold)
        kept = [place[image.numpy().tobytes()] for image in part.train.images]
        assert torch.equal(part.train.y, whole.train.y[kept]) and kept == sorted(kept)
        assert torch.equal(part.train.y_clean, whole.train.y_clean[kept])
        assert torch.equal(part.val.images, whole.val.images) and torch.equal(part.test.images, whole.test.images)
        left_out += (out := sorted(set(range(702)) - set(kept)))
        assert out[0] == fold and len(out) in (140, 141)
    assert sorted(left_out) == list(range(702))
    assert len(load_data("digits", **asked, folds=1).train) == 702


def test_noise_is_planted_in_training_alone_and_the_clean_labels_stay():
    clean, noisy = (load_data("digits", val_size=100, noise="symmetric_wrong", noise_rate=rate) for rate in (0, 0.5))
    assert torch.equal(noisy.train.y_clean, clean.train.y)
    assert (noisy.train.y != noisy.train.y_clean).sum() == int(0.5 * 697)
    assert torch.equal(noisy.val.y, clean.val.y) and torch.equal(noisy.test.y, clean.test.y)


def test_cifar10_confusions_are_mutual_for_cat_and_dog():
    confusions = DATASETS["cifar10"].confusions
    assert len(confusions) == 10
    assert (confusions[3], confusions[5], confusions[9], confusions[2], confusions[4]) == (5, 3, 1, 0, 7)
    every = Split(torch.zeros(10, 3, 1, 1, dtype=torch.uint8), *[torch.arange(10)] * 3)
    assert tuple(spoil(every, "class_dependent", 1.0).y.tolist()) == confusions


def test_an_epoch_shows_every_sample_once(generator):
    split = load_data("digits", train_size=130).train
    batches = list(split.batches(50, generator))
    assert [len(y) for _, y, _ in batches] == [50, 50, 30]
    index = torch.cat([i for _, _, i in batches])
    assert sorted(index.tolist()) == list(range(130))
    for x, y, i in batches:
        assert torch.equal(x, split.images[i].float() / 255) and torch.equal(y, split.y[i])


def test_crop_flip_is_a_padded_crop_of_each_image(generator):
    images = torch.randint(1, 256, (64, 3, 8, 8), dtype=torch.uint8)
    out = crop_flip(images, generator)
    padded = torch.nn.functional.pad(images, (4, 4, 4, 4))
    seen = set()
    for before, after in zip(padded, out, strict=True):
        places = [
            (top, left, mirrored)
            for top in range(9)
            for left in range(9)
            for mirrored in (False, True)
            if torch.equal(after.flip(2) if mirrored else after, before[:, top : top + 8, left : left + 8])
        ]
        assert places
        seen.add(places[0])
    assert len(seen) > 30 and len({mirrored for _, _, mirrored in seen}) == 2


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (dict(dataset="cifar"), "Did you mean 'cifar10'"),
        (dict(noise="symetric"), "Did you mean 'symmetric'"),
        (dict(noise_rate=1.2), "nearest is 1"),
        (dict(train_size=700, val_size=100), "train_size . val_size = 800 is out of range: expected from 0 to 797"),
        (dict(test_size=1001), "from 0 to 1000"),
        (dict(noise="human_worst", noise_rate=0.1), "noise on digits = 'human_worst' is not known"),
    ],
)
def test_bad_requests(wrong, said):
    with pytest.raises(UsageError, match=said):
        load_data(**(dict(dataset="digits") | wrong))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where datasets are looked for: tmp_path / data."""
    monkeypatch.setattr(files, "DATA", tmp_path / "data")
    return tmp_path / "data"


def tiny_cifar(interrupt=lambda: None):
    """A CIFAR-10 of 60 images, whole in every respect; interrupt is called when a download is half-way."""
    images = torch.zeros(10, 3072, dtype=torch.uint8).numpy()
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    contents = {name: pickle.dumps(dict(data=images, labels=[*range(10)], name=name)) for name in names}
    contents["batches.meta"] = pickle.dumps(dict(label_names=[*"abcdefghij"]))
    sums = {name: hashlib.md5(content, usedforsecurity=False).hexdigest() for name, content in contents.items()}

    def download(self):
        place = Path(self.root) / self.base_folder
        place.mkdir()
        for name, content in contents.items():
            (place / name).write_bytes(content)
            if name == "data_batch_3":
                interrupt()

    lists = dict(train_list=[*sums.items()][:5], test_list=[*sums.items()][5:6])
    meta = dict(filename="batches.meta", key="label_names", md5=sums["batches.meta"])
    return type("Tiny", (CIFAR10,), dict(download=download, meta=meta, **lists))


@pytest.mark.parametrize("damage", ["truncated", "one byte changed", "empty", "missing"])
def test_a_damaged_cifar_file_is_named_and_left_as_it_is(folder, fault, damage):
    source = tiny_cifar()
    assert [part[0].shape for part in files.cifar(source)] == [(50, 3, 32, 32), (10, 3, 32, 32)]
    path = folder / source.base_folder / "data_batch_2"
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(dict(truncated=content[:-1], empty=b"").get(damage, b"x" + content[1:]))
    files.cifar.cache_clear()  # as in another process
    before = {file: file.read_bytes() for file in path.parent.iterdir()}
    with pytest.raises(
        DataError, match=r"^data_batch_2 in .*damaged or missing .md5.*Remove that folder and run again"
    ):
        files.cifar(source)
    fault(lost=before != {file: file.read_bytes() for file in path.parent.iterdir()})


def test_a_download_that_breaks_leaves_nothing(folder, fault):
    def lost():
        raise OSError("connection lost")

    with pytest.raises(DataError, match=r"could not be downloaded .connection lost.*run again"):
        files.cifar(tiny_cifar(lost))
    fault(lost=bool([*folder.iterdir()]))


def test_a_download_killed_half_way_is_taken_for_none(folder, fault):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking is safe here: the child only writes files
        child = os.fork()
    if not child:
        try:
            files.cifar(tiny_cifar(lambda: os.kill(os.getpid(), signal.SIGKILL)))
        finally:
            os._exit(1)  # a second process that goes on with the tests would disturb the first
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert [path.name[:10] for path in folder.iterdir()] == [".download-"]
    fault(lost=len(files.cifar(tiny_cifar())[0][0]) != 50)


def test_a_data_folder_that_is_read_only(tmp_path, monkeypatch, folder, fault):
    """A real one where this machine lets us mount it; else one below a file, where nothing can be written either."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "ro,size=100k", "none", folder]
    mounted = not subprocess.run(mount, capture_output=True).returncode
    if not mounted:
        folder.rmdir()
        folder.write_text("")
    try:
        with pytest.raises(DataError, match=r"cannot be written.*Set SGLR_DATA to a folder that can"):
            files.cifar(tiny_cifar())
    finally:
        if mounted:
            subprocess.run(["umount", folder], check=True)
    monkeypatch.setattr(files, "DATA", tmp_path / "elsewhere")
    fault(lost=len(files.cifar(tiny_cifar())[0][0]) != 50)


# Labels that people gave: a small file of the same make as CIFAR-10N's, and the real ones where they are.


def archive(held: object) -> bytes:
    """As torch.save writes an object, its NumPy arrays named as NumPy 1 did."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(held, protocol=2).replace(b"numpy._core", b"numpy.core"))
        file.writestr("archive/version", "3\n")
    return buffer.getvalue()


def people_said(clean):
    worse = (clean + 1 + np.arange(len(clean)) // 10) % 10  # each ten images another shift
    return dict(clean_label=clean, worse_label=worse, aggre_label=np.where(np.arange(len(clean)) % 5, clean, worse))


@pytest.fixture
def publish(tmp_path, monkeypatch, folder):
    """Put a file where the authors' is downloaded from, for a CIFAR-10 of 50 training images; returns what is in it."""
    official = replace(DATASETS["cifar10"].human, names=dict(aggregate="aggre_label", worst="worse_label"))
    source = tiny_cifar()
    files.cifar.cache_clear()
    (tmp_path / "authors").mkdir()
    monkeypatch.setattr(files, "CIFAR_N", (tmp_path / "authors").as_uri() + "/")

    def put(held=None):
        held = people_said(np.arange(50) % 10) if held is None else held
        content = archive(held)
        (tmp_path / "authors" / official.file).write_bytes(content)
        human = replace(official, sha256=hashlib.sha256(content).hexdigest())
        monkeypatch.setitem(
            DATASETS, "cifar10", replace(DATASETS["cifar10"], load=lambda: files.cifar(source), human=human)
        )
        return held

    return put


@pytest.mark.parametrize(("kind", "name"), [("human_worst", "worse_label"), ("human_aggregate", "aggre_label")])
def test_people_label_a_share_of_the_training_images(publish, kind, name):
    held = {key: torch.from_numpy(labels) for key, labels in publish().items()}
    assert torch.equal(human_labels("cifar10")[kind.removeprefix("human_")], held[name])
    for rate, n in ((1.0, 40), (0.5, 20)):
        found = load_data("cifar10", val_size=10, noise=kind, noise_rate=rate, seed=3)
        train = found.train
        given = train.y != train.y_clean
        assert torch.equal(train.y[given], held[name][train.position][given]) and train.y.dtype == torch.int64
        assert torch.equal(train.y_clean, held["clean_label"][train.position])
        assert given.sum() == n if kind == "human_worst" else 0 < given.sum() < n
        assert torch.equal(found.val.y, found.val.y_clean) and torch.equal(found.test.y, found.test.y_clean)
    other = load_data("cifar10", val_size=10, noise=kind, noise_rate=0.5, seed=4).train
    assert not torch.equal(other.y, train.y) and not torch.equal(other.position, train.position.sort().values)


def test_test_labels_stay_clean_where_people_gave_the_training_labels(publish, monkeypatch):
    publish()
    seen = []
    monkeypatch.setitem(DIAGNOSTICS, "spy", lambda snapshot: seen.append(snapshot.test) or {})
    for noise in ("human_worst", "human_aggregate", "symmetric_wrong"):
        config = make_config(dataset="cifar10", val_size=10, noise=noise, noise_rate=1.0, diagnostics=("spy",))
        loaded, model = run_data(config), nn.Identity()
        x, y = loaded.test.x(), loaded.test.y
        views = dict.fromkeys(("train", "test"), View(x, y, y, x, x, x))
        diagnose(config, model, None, None, [], loaded, model, views, "none")
    assert [(test.y != test.y_clean).sum().item() for test in seen] == [0, 0, 10]


@pytest.mark.parametrize(
    ("dataset", "kind", "said"),
    [
        (
            "cifar100",
            "human_aggregate",
            "noise on cifar100 = 'human_aggregate' is not known. Did you mean 'human_worst'",
        ),
        ("digits", "human_aggregate", "noise on digits = 'human_aggregate' is not known. Known: 'symmetric', "),
        ("cifar10", "human_worse", "noise = 'human_worse' is not known. Did you mean 'human_worst'"),
    ],
)
def test_people_labelled_some_datasets_only_which_is_said_before_any_work(folder, dataset, kind, said):
    """Before files are looked for, of which there are none here."""
    with pytest.raises(UsageError, match=said):
        make_config(dataset=dataset, val_size=10, noise=kind, noise_rate=0.4)
    with pytest.raises(UsageError, match=said):
        load_data(dataset, noise=kind, noise_rate=0.4)
    with pytest.raises(UsageError, match=r"dataset with human labels = 'digits' is not known.*'cifar10', 'cifar100'"):
        human_labels("digits")


def test_no_noise_needs_no_file(folder):
    config = make_config(dataset="digits", val_size=10, noise="human_aggregate", noise_rate=0.0)
    train = run_data(config).train
    assert torch.equal(train.y, train.y_clean) and not folder.exists()


def test_peoples_labels_are_downloaded_whole_or_not_at_all(publish, folder, tmp_path, monkeypatch, fault):
    publish()
    authors = tmp_path / "authors" / "CIFAR-10_human.pt"
    content = authors.read_bytes()
    for there, said in ((None, "No such file"), (content[:-1], "what came is another file, by its sha256")):
        authors.unlink()
        if there:
            authors.write_bytes(there)
        with pytest.raises(DataError, match=rf"could not be downloaded .*{said}.*run again, or put file://.* there"):
            human_labels("cifar10")
        fault(lost=[path.name for path in folder.iterdir()] != ["cifar-10-batches-py"])
        authors.write_bytes(content)
    labels = human_labels("cifar10")
    monkeypatch.setattr(files, "download", None)  # the copy that is there now is enough
    assert torch.equal(human_labels("cifar10")["worst"], labels["worst"])
    assert (folder / "cifar_n" / authors.name).read_bytes() == content
    assert sorted(path.name for path in folder.iterdir()) == ["cifar-10-batches-py", "cifar_n"]


def test_a_grid_is_told_at_once_that_peoples_labels_are_missing(publish, tmp_path):
    publish()
    (tmp_path / "authors" / "CIFAR-10_human.pt").unlink()
    configs = [
        make_config(dataset="cifar10", val_size=10, noise=noise, noise_rate=0.2)
        for noise in ("human_worst", "symmetric")
    ]
    with pytest.raises(DataError, match="could not be downloaded"):
        check_data(configs)


@pytest.mark.parametrize("damage", ["truncated", "one byte changed", "empty"])
def test_a_damaged_file_of_peoples_labels_is_left_as_it_is(publish, folder, fault, damage):
    publish()
    human_labels("cifar10")
    path = folder / "cifar_n" / "CIFAR-10_human.pt"
    content = path.read_bytes()
    damaged = dict(truncated=content[:-1], empty=b"").get(damage, content[:99] + b"x" + content[100:])
    path.write_bytes(damaged)
    with pytest.raises(DataError, match=r"^CIFAR-10_human.pt in .*damaged .sha256.*Remove it and run again"):
        human_labels("cifar10")
    fault(lost=path.read_bytes() != damaged)


def test_peoples_labels_in_another_order_are_refused(publish):
    publish(people_said(np.arange(50)[::-1] % 10))
    with pytest.raises(DataError, match=r"not in the order of the training images.*Put the official files into"):
        human_labels("cifar10")


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("harm", [Malicious(), np.array([Malicious()], dtype=object), np.longlong])
def test_nothing_in_a_file_of_peoples_labels_is_executed(publish, monkeypatch, tmp_path, fault, harm):
    """Even where its hash is not looked at."""
    monkeypatch.chdir(tmp_path)
    publish(people_said(np.arange(50) % 10) | dict(harm=harm))
    monkeypatch.setattr(Human, "whole", lambda self, content: True)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        human_labels("cifar10")
    fault(lost=(tmp_path / "executed").exists())


@pytest.mark.parametrize(
    ("dataset", "wrong"),
    [
        ("cifar10", dict(aggregate=4505, worst=20104, random_1=8617, random_2=9061, random_3=8820)),
        ("cifar100", dict(worst=20100)),
    ],
)
def test_the_real_labels_of_people_are_as_often_wrong_as_published(dataset, wrong):
    """Wei et al. 2022, Table 1: 40.21, 17.23, 18.12, 17.64 and, of CIFAR-100N, 40.20 %; for aggregate it has 9.03."""
    human = DATASETS[dataset].human
    images = dict(cifar10="cifar-10-batches-py", cifar100="cifar-100-python")[dataset]
    for needed in (files.DATA / "cifar_n" / human.file, files.DATA / images):
        if not needed.exists():
            pytest.skip(f"{needed.name} is not in {needed.parent}; it is downloaded when a run first asks for it")
    (_, y), _ = DATASETS[dataset].load()
    labels = human_labels(dataset)
    assert {name: (given.numpy() != y).sum() for name, given in labels.items()} == wrong
    for kind, name in HUMAN.items():
        if name in labels:
            train = load_data(dataset, noise=kind, noise_rate=1.0).train
            assert torch.equal(train.y, labels[name][train.position])
            assert (train.y != train.y_clean).sum() == wrong[name]


def test_splits_move_and_shrink():
    split = Split(torch.zeros(5, 1, 2, 2, dtype=torch.uint8), *[torch.arange(5)] * 3)
    assert len(split.first(3)) == 3 and len(split.first(0)) == 5
    assert split.x(slice(2)).dtype == torch.float32
    assert len(split.to("cpu")) == 5


def test_rotation_turns_by_at_most_fifteen_degrees(generator):
    """The upper half is bright. Crop and turn move its edge by at most 4 + 16 tan(15) < 9 rows, and it stays above."""
    images = torch.zeros(64, 3, 32, 32, dtype=torch.uint8)
    images[:, :, :16] = 200
    turned = AUGMENTS["crop_flip_rotate"](images, generator)
    assert turned.dtype == torch.uint8 and turned.shape == images.shape
    assert (turned[:, :, 25:, 8:24] == 0).all()
    assert (turned[:, :, 5:8, 15] == 200).float().mean() > 0.9
    edges = (turned[:, 0, :, 6] > 0).sum(1) - (turned[:, 0, :, 25] > 0).sum(1)
    assert edges.min() < -2 and edges.max() > 2  # either way
