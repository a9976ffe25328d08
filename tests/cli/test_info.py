"""The command info."""

from __future__ import annotations

import json

import pytest
import torch
from support.marks import needs_native

from fastmlp.cli import info
from fastmlp.ops import _load as backend
from fastmlp.utils.errors import UserError


def test_says_what_is_there(capsys):
    assert info.main([]) == 0
    text = capsys.readouterr().out
    assert f"torch {torch.__version__}" in text
    assert "engine reference" in text
    if not torch.cuda.is_available():
        assert "no GPU" in text


@needs_native
def test_a_shape_is_planned_as_the_operators_do_it(capsys):
    shapes = ("8,3072,256", "4096,512,512", "8,64,100")
    assert info.main(["--json", *(word for shape in shapes for word in ("--shape", shape))]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["native"]["built"] is True
    assert result["native"]["cpu_kernels"] == torch.ops.fastmlp.cpu_isa()
    assert result["plans"]["8 x 3072 -> 256, float32"].startswith("fastmlp's kernels")
    assert result["plans"]["8 x 64 -> 100, float32"].startswith("PyTorch's operators (small")
    assert result["plans"]["4096 x 512 -> 512, float32"].startswith("ATen's BLAS")
    assert result["auto"]["engine"] in result["engines"]


def test_says_why_the_extension_is_not_there(capsys, monkeypatch):
    monkeypatch.setattr(backend, "NATIVE_ERROR", "no such file")
    monkeypatch.setattr(backend, "NATIVE_DEVICES", ())
    assert info.main([]) == 0
    text = capsys.readouterr().out
    assert "not there: no such file" in text
    assert "reference on" in text


@pytest.mark.parametrize(
    "text",
    [
        "8,3072",
        "a,b,c",
        "8,3072,-1",
        "",
        f"8,8,{2**64}",
        pytest.param("9" * 5000 + ",1,1", id="long"),
    ],
)
def test_a_wrong_shape_is_one_sentence(text):
    with pytest.raises(UserError, match="--shape must be BATCH,INPUTS,OUTPUTS") as caught:
        info.main(["--shape", text])
    assert caught.value.exit_code == 2
