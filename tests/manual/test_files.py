"""The files of weights that load: ours, a student's, those of torch."""

from __future__ import annotations

import pickle
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from fastmlp.manual import Classifier
from fastmlp.nn.modules import MLP


def weights() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(5)
    shapes = {"w1": (5, 4), "b1": (4,), "w2": (4, 3), "b2": (3,)}
    return {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}


def upper(values: dict) -> dict:
    return {name.upper(): value for name, value in values.items()}


def with_rows(values: dict) -> dict:
    return {n: v[None] if n.lower().startswith("b") else v for n, v in values.items()}


def arrays(values: dict) -> dict:
    return {name: value.numpy() for name, value in values.items()}


def module(kind: type) -> dict:
    model = kind([5, 4, 3]) if kind is MLP else kind(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    w = weights()
    for layer, k in ((model[0], "1"), (model[2], "2")):
        layer.weight.data, layer.bias.data = w[f"w{k}"].t(), w[f"b{k}"]
    return model.state_dict()


@pytest.mark.parametrize(
    "content",
    [
        weights(),
        upper(weights()),
        {"params": weights()},
        with_rows(weights()),
        {"params": upper(with_rows(weights()))},
        arrays(weights()),
        {"params": upper(with_rows(arrays(weights())))},
        {n: v.astype(np.float64) for n, v in arrays(weights()).items()},
        {n: v.astype(">f4") for n, v in arrays(weights()).items()},
        module(nn.Sequential),
        module(MLP),
        {"epoch": 3, "model_state_dict": module(nn.Sequential)},
    ],
    ids=[
        *("ours", "capitals", "params", "rows", "params capitals rows", "arrays", "all at once"),
        *("float64 arrays", "big-endian arrays", "Sequential", "MLP", "a checkpoint"),
    ],
)
def test_a_file_loads(content, tmp_path):
    path, model = tmp_path / "model.pt", Classifier(5, 4, 3)
    torch.save(content, path)
    model.load_model(path)
    assert all(torch.equal(model.params[n], tensor) for n, tensor in weights().items())


def test_an_npz_file_loads(tmp_path):
    path, model = tmp_path / "model.npz", Classifier(5, 4, 3)
    np.savez(path, **upper(arrays(weights())))
    model.load_model(path)
    assert all(torch.equal(model.params[n], tensor) for n, tensor in weights().items())


def test_a_damaged_or_foreign_file_is_told_and_changes_nothing(tmp_path):
    path, model = tmp_path / "model.pt", Classifier(5, 4, 3, backend="reference")
    before = {name: tensor.clone() for name, tensor in model.params.items()}
    model.save_model(path)
    whole = path.read_bytes()
    for damaged in (b"", b"not a model", whole[: len(whole) // 2], b"\x80\x02]q\x00."):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"model\.pt (is damaged|does not fit)"):
            model.load_model(path)
    for foreign in ([1, 2], {"w1": 3}, {"params": 3}, MLP([5, 4, 4, 3]).state_dict()):
        torch.save(foreign, path)
        with pytest.raises(ValueError, match=r"model\.pt does not fit: expected \{'w1': \(5, 4\)"):
            model.load_model(path)
    for strange in (torch.zeros(3, dtype=torch.complex64), torch.ones(3, dtype=torch.bool), "abc"):
        torch.save({**weights(), "b2": strange}, path)
        with pytest.raises(ValueError, match=r"does not fit: expected .*got .*'b2': \(\)"):
            model.load_model(path)
    torch.save({**weights(), "b2": torch.zeros(3).to_sparse()}, path)
    with pytest.raises(ValueError, match=r"is damaged or no file of weights"):
        model.load_model(path)
    for wrong in (torch.nan, torch.inf, 1e300):
        torch.save({**weights(), "b2": torch.full((3,), wrong, dtype=torch.float64)}, path)
        with pytest.raises(ValueError, match="b2 has numbers that are not finite in float32"):
            model.load_model(path)
    itself: dict[str, object] = {}
    itself["params"] = itself
    torch.save(itself, path)
    with pytest.raises(ValueError, match=r"model\.pt does not fit"):
        model.load_model(path)
    torch.save(nn.Linear(5, 4), path)
    with pytest.raises(ValueError, match=r"or of a state_dict\(\), not of a whole model"):
        model.load_model(path)
    Classifier(5, 4, 2).save_model(path)
    with pytest.raises(ValueError, match=r"'w2': \(4, 3\).* got .*'w2': \(4, 2\)"):
        model.load_model(path)
    with pytest.raises(FileNotFoundError):
        model.load_model(tmp_path / "missing.pt")
    with pytest.raises(ValueError, match="is a folder; pass the file of a model"):
        model.load_model(tmp_path)
    assert all(torch.equal(model.params[name], before[name]) for name in before)


def test_arrays_of_integers_load(tmp_path):
    path, model = tmp_path / "model.pt", Classifier(5, 4, 3)
    torch.save({n: np.ones(v.shape, int) for n, v in weights().items()}, path)
    model.load_model(path)
    assert all(torch.equal(tensor, torch.ones_like(tensor)) for tensor in model.params.values())


class _Runs:
    def __reduce__(self) -> tuple:
        return exec, ("raise SystemExit('ran')",)


def test_code_in_a_file_is_not_run(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({**weights(), "b2": _Runs()}, path)
    with pytest.raises(ValueError, match="is damaged or no file of weights"):
        Classifier(5, 4, 3).load_model(path)
    np.savez(tmp_path / "m.npz", w1=np.array([_Runs()], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="is damaged or no file of weights"):
        Classifier(5, 4, 3).load_model(tmp_path / "m.npz")
    assert b"exec" in pickle.dumps(_Runs())


def test_a_file_cannot_make_an_array_of_what_it_is_not(tmp_path):
    """NumPy's own dtype, given this state, is one of objects: pointers of the file's choice."""
    forged = (
        b"\x80\x02}X\x02\x00\x00\x00w1cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
        b"K\x01\x85c_codecs\nencode\nX\x01\x00\x00\x00bX\x06\x00\x00\x00latin1\x86R\x87R"
        b"(K\x01K\x01\x85cnumpy\ndtype\nX\x02\x00\x00\x00f8K\x00K\x01\x87R"
        b"(K\x03X\x01\x00\x00\x00|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK?tb"
        b"\x89c_codecs\nencode\nX\x08\x00\x00\x00AAAAAAAAX\x06\x00\x00\x00latin1\x86Rtbs."
    )
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", forged)
        archive.writestr("model/version", "3\n")
    model = Classifier(4, 3, 2)
    with pytest.raises(ValueError, match="does not fit: expected"):
        model.load_model(path)
