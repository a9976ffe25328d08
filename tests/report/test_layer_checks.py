"""The table of layer tests: right layers pass, a wrong one is caught."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastmlp import functional, manual
from fastmlp.report.layer_checks import LayerCheck, check_layers


def test_all_layers_pass_and_every_result_is_there() -> None:
    checks = check_layers()
    assert all(check.passed for check in checks)
    assert len({(check.layer, check.shape, check.result) for check in checks}) == len(checks) == 40
    results = {check.layer: set() for check in checks}
    for check in checks:
        results[check.layer].add(check.result)
        assert check.largest > 0
    assert results["linear"] == results["manual fully connected"] == {"y", "dx", "dw", "db"}
    assert results["softmax cross entropy"] == {"y", "dlogits"}


def test_a_wrong_gradient_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    backward = manual.ReLU.backward

    def wrong(self: manual.ReLU, backprop: Tensor) -> Tensor:
        return backward(self, backprop) + 1e-5

    monkeypatch.setattr(manual.ReLU, "backward", wrong)
    failed = {(check.layer, check.result) for check in check_layers() if not check.passed}
    assert failed == {("manual ReLU", "dx")}


def test_a_wrong_layer_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    linear = functional.linear
    monkeypatch.setattr(
        functional, "linear", lambda *args, **more: linear(*args, **more) * (1 + 1e-4)
    )
    failed = {check.layer for check in check_layers() if not check.passed}
    assert failed == {"linear", "linear + relu", "manual fully connected"}


def test_the_rule_is_twice_the_error_of_pytorch_and_a_few_ulp() -> None:
    def passed(error: float, torch_error: float) -> bool:
        return LayerCheck("l", "s", "y", 1.0, 0.0, error, torch_error).passed

    eps = torch.finfo(torch.float32).eps
    assert passed(2e-6, 1e-6)
    assert not passed(3e-6, 1e-6)
    assert passed(4 * eps, 0)
    assert not passed(5 * eps, 0)
    assert not passed(float("nan"), 1e-6)
