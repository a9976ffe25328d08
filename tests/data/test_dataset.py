"""Data sets: found, read, shown. CIFAR-10 is a tiny one of random pixels."""

import re
import runpy
import sys

import matplotlib.image
import numpy as np
import pytest
import torch
from support.cifar10_files import (
    BATCH,
    binary_files,
    free_port,
    make_batches,
    make_tiny,
    pickle_files,
    visible,
    write_folder,
)

from fastmlp.cli.data import main
from fastmlp.cli.options import add_data_arguments
from fastmlp.cli.parser import ArgumentParser
from fastmlp.data import dataset as data
from fastmlp.data import synthetic
from fastmlp.data.cifar10 import BINARY, PYTHON, cache_folder
from fastmlp.data.dataset import load_dataset
from fastmlp.data.transforms import channel_statistics
from fastmlp.utils.errors import UserError


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """(batches, binary archive, pickled archive); no data folder is set, the home is empty, and
    the network is one refused connection."""
    batches = make_batches()
    contents = make_tiny(monkeypatch, batches)
    monkeypatch.delenv("FASTMLP_DATA", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FASTMLP_CIFAR10_URL", f"http://127.0.0.1:{free_port()}/x")
    return (batches, *contents)


@pytest.fixture
def small_synthetic(monkeypatch):
    """The synthetic set, made small: (images, labels)."""
    images, labels = synthetic.generate(600, seed=3)
    monkeypatch.setattr(synthetic, "generate", lambda count, seed: (images, labels))
    return images, labels


def assert_is(dataset, batches, source):
    images = np.concatenate([images for images, _ in batches]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([labels for _, labels in batches])
    end = 5 * BATCH
    assert torch.equal(dataset.images, torch.from_numpy(images[:end]))
    assert torch.equal(dataset.labels, torch.from_numpy(labels[:end]))
    assert torch.equal(dataset.test_images, torch.from_numpy(images[end:]))
    assert torch.equal(dataset.test_labels, torch.from_numpy(labels[end:]))
    assert (dataset.name, dataset.synthetic, dataset.source) == ("cifar10", False, str(source))
    assert dataset.classes[:2] == ("airplane", "automobile")


# Finding


def test_every_layout_is_found(tiny, tmp_path):
    batches, binary, pickled = tiny
    binary_folder = write_folder(tmp_path / "a" / BINARY.folder, binary_files(batches))
    pickle_folder = write_folder(tmp_path / "b" / PYTHON.folder, pickle_files(batches))
    renamed = write_folder(tmp_path / "renamed", pickle_files(batches))
    for root, source in (
        (tmp_path / "a", binary_folder),
        (binary_folder, binary_folder),
        (str(tmp_path / "b"), pickle_folder),
        (pickle_folder, pickle_folder),
        (renamed, renamed),
    ):
        assert_is(load_dataset("auto", root, download=False), batches, source)
    for name, archive, content in (("c", BINARY, binary), ("d", PYTHON, pickled)):
        root = tmp_path / name
        write_folder(root, {archive.filename: content})
        for _ in range(2):  # from the archive, then from the folder it was unpacked to
            found = load_dataset("cifar10", root, download=False, progress=False)
            assert_is(found, batches, root / archive.folder)
        assert visible(root) == sorted([archive.filename, archive.folder])


def test_a_folder_one_level_deeper_is_found(tiny, tmp_path):
    other = make_batches(seed=9)
    write_folder(tmp_path / ".scratch" / BINARY.folder, binary_files(other))
    folder = write_folder(tmp_path / "sets" / BINARY.folder, binary_files(tiny[0]))
    assert_is(load_dataset("auto", tmp_path, download=False), tiny[0], folder)
    top = write_folder(tmp_path / BINARY.folder, binary_files(other))
    assert_is(load_dataset("auto", tmp_path, download=False), other, top)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (
            ["cifar-100-python/train"],
            "'cifar-100-python', which is CIFAR-100, of which cifar",
        ),
        (["cifar-100-binary.tar.gz"], r"CIFAR-100 \(dataset cifar100\)"),
        (["cat/1.png", "dog/1.png"], r"'cat', a folder of images \(train --data .*found learns"),
        (["1.PNG", "2.png"], "'1.PNG', an image "),
        (
            ["a.parquet", "b.mat"],
            "'a.parquet', a table .*; and 'b.mat', a file of MATLAB, whi",
        ),
        (["FashionMNIST/raw/x"], "'FashionMNIST', where fashion-mnist would be"),
    ],
)
def test_what_else_a_folder_holds_is_said_before_a_download(
    tiny, tmp_path, monkeypatch, capsys, names, words
):
    root = tmp_path / "found"
    for name in [*names, ".hidden.mat", "notes.txt"]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    with pytest.raises(UserError, match=words) as error:
        load_dataset("cifar10", root, download=False)
    assert str(error.value).count("'") == 2 * len(words.split("; and "))  # each kind once
    assert "hidden" not in str(error.value)

    def fetch(root, url, *, progress):
        assert re.search(words, capsys.readouterr().err)
        return BINARY, write_folder(root / BINARY.folder, binary_files(tiny[0]))

    monkeypatch.setattr(data, "fetch", fetch)
    assert load_dataset("auto", root).name == "cifar10"


def test_the_binary_layout_is_preferred(tiny, tmp_path):
    write_folder(tmp_path / PYTHON.folder, pickle_files(make_batches(seed=9)))
    folder = write_folder(tmp_path / BINARY.folder, binary_files(tiny[0]))
    assert_is(load_dataset(data_dir=tmp_path), tiny[0], folder)


def test_an_archive_in_a_folder_that_cannot_be_written_is_used(tiny, tmp_path, monkeypatch):
    root = write_folder(tmp_path / "root", {PYTHON.filename: tiny[2]})
    monkeypatch.setattr(data.os, "access", lambda path, mode: False)
    found = load_dataset("cifar10", root, download=False, progress=False)
    assert_is(found, tiny[0], root / PYTHON.filename)
    assert visible(root) == [PYTHON.filename]


def test_folders_are_searched_in_order(tiny, tmp_path, monkeypatch):
    cache = write_folder(tmp_path / "home/.cache/fastmlp" / BINARY.folder, binary_files(tiny[0]))
    assert_is(load_dataset(), tiny[0], cache)
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("FASTMLP_DATA", str(tmp_path / "empty"))
    assert_is(load_dataset(), tiny[0], cache)
    other, third = make_batches(1), make_batches(2)
    variable = write_folder(tmp_path / "variable", binary_files(other))
    monkeypatch.setenv("FASTMLP_DATA", str(variable))
    assert_is(load_dataset(), other, variable)
    given = write_folder(tmp_path / "given", binary_files(third))
    assert_is(load_dataset(data_dir=given), third, given)


def test_the_cache_is_where_the_system_keeps_caches(tiny, tmp_path, monkeypatch):
    assert cache_folder() == tmp_path / "home/.cache/fastmlp"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "100%"))
    folder = write_folder(tmp_path / "100%/fastmlp" / BINARY.folder, binary_files(tiny[0]))
    assert_is(load_dataset(), tiny[0], folder)
    parser = ArgumentParser()
    add_data_arguments(parser)
    assert str(tmp_path / "100%/fastmlp") in parser.format_help().replace("\n" + " " * 24, "")


def test_a_named_folder_must_exist(tiny, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for name, found in (("nowhere", "missing"), ("file", "a file")):
        for dataset in ("auto", "cifar10"):
            with pytest.raises(UserError, match=f"data_dir must be .*{name} is {found}"):
                load_dataset(dataset, tmp_path / name)
    monkeypatch.setenv("FASTMLP_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"\$FASTMLP_DATA must be an existing folder"):
        load_dataset()


@pytest.mark.parametrize("dataset", ["auto", "cifar10"])
def test_a_named_folder_without_cifar10_is_not_replaced_by_another(tiny, tmp_path, dataset):
    write_folder(tmp_path / "home/.cache/fastmlp" / BINARY.folder, binary_files(tiny[0]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as error:
        load_dataset(dataset, tmp_path / "empty", download=False)
    for name in (str(tmp_path / "empty"), BINARY.folder, PYTHON.folder, "python.tar.gz"):
        assert name in str(error.value)


def test_a_damaged_folder_is_an_error_and_no_reason_for_the_synthetic_set(tiny, tmp_path):
    folder = write_folder(tmp_path / BINARY.folder, binary_files(tiny[0]))
    for name in binary_files(tiny[0]):  # down to the empty folder
        (folder / name).unlink()
        with pytest.raises(UserError, match=r"cifar-10-batches-bin/data_batch_1.bin is missing"):
            load_dataset("auto", tmp_path, download=False)


def test_a_download_goes_to_the_named_folder(tiny, tmp_path, monkeypatch):
    def fetch(root, url, *, progress):
        assert url == "http://mirror/"
        return BINARY, write_folder(root / BINARY.folder, binary_files(tiny[0]))

    monkeypatch.setattr(data, "fetch", fetch)
    for name, data_dir in (("a", tmp_path / "a"), ("b", None)):
        (tmp_path / name).mkdir()
        monkeypatch.setenv("FASTMLP_DATA", str(tmp_path / "b"))
        found = load_dataset("auto", data_dir, "http://mirror/")
        assert_is(found, tiny[0], tmp_path / name / BINARY.folder)


def test_auto_without_network_warns_and_takes_the_synthetic_set(tiny, small_synthetic, capsys):
    dataset = load_dataset("auto")
    assert (dataset.name, dataset.synthetic) == ("synthetic", True)
    assert "not CIFAR-10" in dataset.source
    assert torch.equal(dataset.images, torch.from_numpy(small_synthetic[0][:500]))
    assert torch.equal(dataset.test_labels, torch.from_numpy(small_synthetic[1][500:]))
    text = " ".join(capsys.readouterr().err.replace("#", " ").split())
    for wanted in (
        "THIS IS NOT CIFAR-10",
        "Connection refused",
        "--dataset cifar10",
        'dataset="cifar10"',
    ):
        assert wanted in text


def test_auto_without_download_warns_and_takes_the_synthetic_set(tiny, small_synthetic, capsys):
    assert load_dataset("auto", download=False).synthetic
    assert "downloading is off" in capsys.readouterr().err


def test_cifar10_without_network_is_an_error(tiny, tmp_path, capsys):
    with pytest.raises(UserError, match=r"There is no CIFAR-10 in .*: Could not download http"):
        load_dataset("cifar10", progress=False)
    assert capsys.readouterr().err == ""


def test_synthetic_looks_nowhere_and_says_nothing(small_synthetic, capsys):
    dataset = load_dataset("synthetic", "/nowhere")
    assert (dataset.name, dataset.classes) == ("synthetic", synthetic.CLASSES)
    assert capsys.readouterr() == ("", "")


def test_an_unknown_data_set_is_refused():
    with pytest.raises(UserError, match="dataset must be one of auto, cifar10, synthetic") as error:
        load_dataset("mnits")
    assert error.value.exit_code == 2


def test_the_synthetic_set_has_the_shape_of_cifar10():
    dataset = load_dataset("synthetic")
    assert (dataset.images.shape, dataset.test_images.shape) == (
        (50_000, 3, 32, 32),
        (10_000, 3, 32, 32),
    )
    assert torch.bincount(dataset.labels).tolist() == [5000] * 10
    assert torch.bincount(dataset.test_labels).tolist() == [1000] * 10


def test_the_real_cifar10(cifar10_dir):
    dataset = load_dataset("cifar10", cifar10_dir, download=False)
    assert (dataset.name, len(dataset.classes)) == ("cifar10", 10)
    assert torch.bincount(dataset.labels).tolist() == [5000] * 10
    assert torch.bincount(dataset.test_labels).tolist() == [1000] * 10
    means, deviations = channel_statistics(dataset.images.flatten(1))
    assert [round(mean / 255, 4) for mean in means] == [0.4914, 0.4822, 0.4465]
    assert [round(deviation / 255, 4) for deviation in deviations] == [0.2470, 0.2435, 0.2616]


# The command line


def test_arguments_are_those_of_the_functions():
    parser = ArgumentParser(prog="x")
    add_data_arguments(parser)
    assert vars(parser.parse_args([])) == {
        "dataset": "auto",
        "data_dir": None,
        "data_url": None,
        "split": "60/20/20",
        "test_set": "split",
    }
    assert "None" not in parser.format_help()
    for arguments in (["--split", "1/2/3"], ["--dataset", "x"], ["--test-set", "x"]):
        with pytest.raises(UserError) as error:
            parser.parse_args(arguments)
        assert error.value.exit_code == 2


def test_info_tells_what_there_is(tiny, tmp_path, capsys):
    folder = write_folder(tmp_path / "data", binary_files(tiny[0]))
    assert main(["info", "--data-dir", str(folder), "--test-set", "official"]) == 0
    lines = capsys.readouterr().out.splitlines()
    labels = torch.from_numpy(np.concatenate([labels for _, labels in tiny[0]]))
    counts = [
        torch.bincount(part, minlength=10) for part in (labels[:60], labels[60:80], labels[100:])
    ]
    rows = [line.split() for line in lines]
    for row, name in enumerate(data.CIFAR10_CLASSES):
        assert [name, *(str(int(count[row])) for count in counts)] in rows
    assert ["all", "60", "20", "20"] in rows
    means, deviations = channel_statistics(
        torch.from_numpy(np.concatenate([tiny[0][i][0] for i in range(3)]))
    )
    assert ["mean", "/", "255", *(f"{mean / 255:.4f}" for mean in means)] in rows
    assert ["std", "/", "255", *(f"{std / 255:.4f}" for std in deviations)] in rows
    text = "\n".join(lines)
    for wanted in (
        str(folder),
        "uint8, values from 0 to 255",
        "100 training (3, 32, 32)",
        "20 off",
    ):
        assert wanted in text


def test_samples_draws_ten_of_each_class(monkeypatch, tmp_path, capsys):
    shades = np.arange(10, dtype=np.uint8) * 20
    labels = np.arange(600) % 10
    images = np.broadcast_to(shades[labels, None, None, None], (600, 3, 32, 32)).copy()
    monkeypatch.setattr(synthetic, "generate", lambda count, seed: (images, labels))
    out = tmp_path / "new" / "samples.png"
    assert main(["samples", "--dataset", "synthetic", "--out", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    picture = np.rint(matplotlib.image.imread(out)[..., 0] * 255)
    assert (picture[:, :3] == 255).all()  # no name is cut off
    column = picture[:, -200]
    changes = column[np.flatnonzero(np.diff(column, prepend=-1))]
    assert [shade for shade in changes if shade in shades] == shades.tolist()
    assert [path.name for path in out.parent.iterdir()] == ["samples.png"]


def test_samples_refuses_another_file_type(small_synthetic, tmp_path):
    with pytest.raises(UserError, match=r"ends in .png, .pdf or .svg"):
        main(["samples", "--dataset", "synthetic", "--out", str(tmp_path / "x.txt")])
    assert visible(tmp_path) == []


def test_download_says_where_it_is(tiny, tmp_path, capsys):
    folder = write_folder(tmp_path / BINARY.folder, binary_files(tiny[0]))
    assert main(["download", "--data-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"CIFAR-10 is in {folder}\n"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["info", "--data-dir", "/no/such/folder"], 1, "--data-dir must be an existing folder"),
        (["paint"], 2, "invalid choice: 'paint'"),
        (["download", "--data-dir=/dev", "--data-url=ftp://x"], 1, "--data-url must be an http"),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(arguments, code, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["python -m fastmlp.data", *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("fastmlp.data", run_name="__main__")
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (code, "")
    assert err.startswith("fastmlp: error: ")
    assert message in err
    assert err.count("\n") == 1
