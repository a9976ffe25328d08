"""A trained network together with how raw rows become its inputs and outputs become predictions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastmlp.data.encoding import TableEncoding
from fastmlp.data.tables import as_array, as_column, as_table
from fastmlp.data.targets import TargetEncoding
from fastmlp.engines.metrics import EvalMetrics, eval_metrics
from fastmlp.ops.activations import row_of
from fastmlp.ops.losses import loss_row
from fastmlp.ops.predict_rows import evaluate_rows, predict_rows
from fastmlp.training.config import TrainConfig
from fastmlp.utils.errors import UserError


@dataclass(frozen=True)
class Encoding:
    """How the rows and the targets of a user's data are encoded: ``encoding.json`` in the folder of
    a run."""

    inputs: TableEncoding
    target: TargetEncoding

    def to_dict(self) -> dict[str, Any]:
        """Return the encoding as JSON has it; :meth:`from_dict` reads it."""
        return {"inputs": self.inputs.to_dict(), "target": self.target.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Encoding:
        """Return the encoding of a :meth:`to_dict`; raise KeyError, TypeError or ValueError where
        it is none."""
        inputs = TableEncoding.from_dict(values["inputs"])
        return cls(inputs, TargetEncoding.from_dict(values["target"]))


@dataclass(frozen=True)
class Predictor:
    """A network (``parameters``, a plain ``state_dict``) that predicts raw rows: whatever
    :func:`~fastmlp.data.tables.as_table` takes, with the columns that it was trained on."""

    config: TrainConfig
    encoding: Encoding
    parameters: Mapping[str, Tensor]

    def predict(self, x: object) -> NDArray[Any]:
        """Return each row's class, as the target had them, or its number, (n,)."""
        target, outputs = self.encoding.target, self._outputs(x)
        if target.task == "classification":
            labels: NDArray[Any] = target.labels[outputs.argmax(1).numpy()]
            return labels
        expected = loss_row(self.config.loss).link(outputs)[:, 0].double().numpy()
        numbers: NDArray[np.float64] = expected * target.deviation + target.mean
        return numbers

    def predict_proba(self, x: object) -> NDArray[np.float32]:
        """Return the probability of each class, (n, classes), in the order of
        ``encoding.target.classes``; raise UserError in a regression."""
        if self.encoding.target.task != "classification":
            raise UserError("A regression has no probabilities of classes; call predict.")
        probabilities: NDArray[np.float32] = self._outputs(x).softmax(1).numpy()
        return probabilities

    def evaluate(self, x: object, y: object, sample_weight: object = None) -> EvalMetrics:
        """Return loss and accuracy on rows and their targets; in a regression the loss is that of
        the standardised target."""
        inputs, config = self._inputs(x), self.config.optimizer_config
        targets = target_tensor(self.encoding.target, y, len(inputs))
        weights = weight_tensor(sample_weight, len(inputs))
        tensors = list(self.parameters.values())
        step = config.step_config(len(tensors[-1]))
        found = evaluate_rows(tensors, inputs, targets, step, row_weights=weights)
        return eval_metrics(config.loss, *found)

    @property
    def model(self) -> nn.Sequential:
        """The network as a module of ``torch.nn``, from inputs to outputs before the loss."""
        return as_module(self.parameters, self.config.activation)

    def _inputs(self, x: object) -> Tensor:
        return torch.from_numpy(self.encoding.inputs.apply(as_table(x)))

    def _outputs(self, x: object) -> Tensor:
        tensors = list(self.parameters.values())
        return predict_rows(tensors, self._inputs(x), activation=self.config.activation)


def as_module(parameters: Mapping[str, Tensor], activation: str) -> nn.Sequential:
    """Return ``nn.Sequential(nn.Linear, activation, nn.Linear, ...)`` with copies of these
    parameters."""
    biases = list(parameters.values())[1::2]
    sizes = [next(iter(parameters.values())).shape[1], *(len(bias) for bias in biases)]
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), row_of(activation).module()]
    model = nn.Sequential(*layers[:-1]).to(biases[0].dtype)
    model.load_state_dict(dict(parameters))
    return model


def target_tensor(target: TargetEncoding, y: object, count: int) -> Tensor:
    """Return the targets of ``count`` rows as a network is trained on them: labels (n,) int64 or
    numbers (n, 1) float32."""
    encoded = torch.from_numpy(target.apply(target_column(y, count)))
    return encoded[:, None] if encoded.is_floating_point() else encoded


def target_column(y: object, count: int) -> NDArray[Any]:
    """Return targets (n,) or (n, 1) as a column; raise UserError unless there are ``count``."""
    array = as_array(y, "y")
    if array.ndim == 2 and array.shape[1] == 1:
        array, y = array[:, 0], array[:, 0]
    if array.ndim != 1:
        raise UserError(f"y must be one target for each row, of shape (n,), got {array.shape}.")
    if len(array) != count:
        raise UserError(f"y has {len(array):,} targets and X has {count:,} rows; pass as many.")
    return as_column(array if hasattr(y, "detach") else y)


def weight_tensor(weights: object, count: int) -> Tensor | None:
    """Return the weights of ``count`` rows, float32; None for None. Raise UserError for a weight
    below 0 or not finite, and where all are 0."""
    if weights is None:
        return None
    array = as_array(weights, "sample_weight")
    if array.shape != (count,) or array.dtype.kind not in "fiub":
        raise UserError(
            f"sample_weight must be {count:,} numbers, one for each row, got {array.shape}."
        )
    tensor = torch.from_numpy(array.astype(np.float32))
    wrong = ~(tensor.isfinite() & (tensor >= 0))
    if wrong.any():
        row = int(wrong.int().argmax())
        raise UserError(f"sample_weight is {tensor[row]:g} in row {row + 1}; pass 0 or more.")
    if count and not tensor.sum() > 0:
        raise UserError("sample_weight is 0 in every row; pass a weight above 0 for some.")
    return tensor
