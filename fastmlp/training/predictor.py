"""A trained network together with how raw rows become its inputs and outputs become predictions."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastmlp.data.encoding import TableEncoding
from fastmlp.data.pixels import PixelEncoding, as_pixels
from fastmlp.data.tables import Table, as_array, as_column, as_table, listed
from fastmlp.data.targets import TargetEncoding
from fastmlp.engines.metrics import EvalMetrics, eval_metrics
from fastmlp.ops.activations import row_of
from fastmlp.ops.losses import loss_row
from fastmlp.ops.predict_rows import evaluate_rows, predict_rows
from fastmlp.training.config import TrainConfig
from fastmlp.training.run_directory import RunDirectory
from fastmlp.utils.errors import UserError
from fastmlp.utils.untrusted import reason
from fastmlp.utils.value_checks import Fields, check_fields, is_object


@dataclass(frozen=True)
class Encoding:
    """How the rows and the targets of a user's data are encoded: ``encoding.json`` in the folder of
    a run."""

    inputs: TableEncoding | PixelEncoding
    target: TargetEncoding

    def to_dict(self) -> dict[str, Any]:
        """Return the encoding as JSON has it; :meth:`from_dict` reads it."""
        return {"inputs": self.inputs.to_dict(), "target": self.target.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Encoding:
        """Return the encoding of a :meth:`to_dict`; raise ValueError where it is none."""
        check_fields("it", {"origin": None, **values}, _ENCODING)
        kind = PixelEncoding if "pixels" in values["inputs"] else TableEncoding
        return cls(kind.from_dict(values["inputs"]), TargetEncoding.from_dict(values["target"]))

    @classmethod
    def of(cls, folder: RunDirectory) -> Encoding:
        """Return the encoding of a run; raise UserError where it is missing or damaged."""
        values = folder.read_encoding()
        try:
            return cls.from_dict(values)
        except ValueError as error:
            raise UserError(
                f"{folder.path / 'encoding.json'} is damaged: {reason(error)}; train the network "
                "again"
            ) from error


_ENCODING: Fields = {"inputs": is_object, "target": is_object, "origin": lambda value: True}


@dataclass(frozen=True)
class Predictor:
    """A network (``parameters``, a plain ``state_dict``) that predicts raw rows: whatever
    :func:`~fastmlp.data.tables.as_table` takes, with the columns that it was trained on."""

    config: TrainConfig
    encoding: Encoding
    parameters: Mapping[str, Tensor]

    @classmethod
    def load(cls, run: str | os.PathLike[str]) -> Predictor:
        """Return the network of the best epoch of the run in a folder; raise UserError where a file
        of it is missing or damaged."""
        folder = RunDirectory(run)
        config, encoding = folder.read_config(), Encoding.of(folder)
        sizes = [encoding.inputs.width, *config.hidden, encoding.target.outputs]
        return cls(config, encoding, folder.read_best(sizes))

    def predict(self, x: object) -> NDArray[Any]:
        """Return each row's class, as the target had them, or its number, (n,); with several
        targets (n, targets)."""
        expected: NDArray[np.float32] = loss_row(self.config.loss).link(self._outputs(x)).numpy()
        return self.encoding.target.predictions(expected)

    def predict_proba(self, x: object) -> NDArray[np.float32]:
        """Return the probability of each class, (n, classes), in the order of
        ``encoding.target.classes``; with several targets that of each one's second class, (n,
        targets). Raises UserError in a regression."""
        if self.encoding.target.task != "classification":
            raise UserError("A regression has no probabilities of classes; call predict.")
        probabilities: NDArray[np.float32] = (
            loss_row(self.config.loss).link(self._outputs(x)).numpy()
        )
        return probabilities

    def evaluate(self, x: object, y: object, sample_weight: object = None) -> EvalMetrics:
        """Return loss and accuracy on rows and their targets; in a regression the loss is that of
        the standardised target."""
        inputs, config = self._inputs(x), self.config.optimizer_config
        targets = target_tensor(self.encoding.target, y, len(inputs))
        weights = weight_tensor(sample_weight, len(inputs))
        tensors = list(self.parameters.values())
        step = config.step_config(len(tensors[-1]))
        scale, shift = self._affine
        found = evaluate_rows(
            tensors, inputs, targets, step, row_weights=weights, scale=scale, shift=shift
        )
        return eval_metrics(config.loss, *found)

    @property
    def model(self) -> nn.Sequential:
        """The network as a module of ``torch.nn``, from inputs to outputs before the loss."""
        return as_module(self.parameters, self.config.activation)

    def _inputs(self, x: object) -> Tensor:
        return input_tensor(self.encoding.inputs, x)

    @property
    def _affine(self) -> tuple[Tensor | None, Tensor | None]:
        """What the inputs are multiplied by, and what is added then."""
        inputs = self.encoding.inputs
        if isinstance(inputs, TableEncoding):
            return None, None
        found = inputs.normalization(self.config.normalize)
        return found.scale, found.shift

    def _outputs(self, x: object) -> Tensor:
        tensors, (scale, shift) = list(self.parameters.values()), self._affine
        activation = self.config.activation
        return predict_rows(
            tensors, self._inputs(x), activation=activation, scale=scale, shift=shift
        )


def input_tensor(encoding: TableEncoding | PixelEncoding, x: object, source: str = "X") -> Tensor:
    """Return the inputs of raw rows as a network takes them: numbers (n, inputs) float32, or pixels
    uint8, to be normalised."""
    found: NDArray[Any] = (
        encoding.apply(as_table(x, source))
        if isinstance(encoding, TableEncoding)
        else encoding.apply(as_pixels(x, source))
    )
    return torch.from_numpy(np.require(found, requirements=["C", "W"]))


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
    numbers (n, targets) float32."""
    table = target_table(y, count)
    if len(table.names) != len(target.names):
        raise UserError(
            f"y has {len(table.names)} targets for each row, and the network was trained on "
            f"{len(target.names)}; pass those."
        )
    if set(table.names) != set(target.names):
        if table.named and len(table.names) > 1:
            raise UserError(
                f"y has the targets {listed(table.names)}, and the network was trained on "
                f"{listed(target.names)}; pass those."
            )
        columns = dict(zip(target.names, table.columns.values(), strict=True))
        table = replace(table, columns=columns)
    return torch.from_numpy(target.apply(table))


def target_table(y: object, count: int, name: str = "y") -> Table:
    """Return targets (n,) or (n, targets), or those of a data frame, as columns, of this ``name``
    where they have none; raise UserError unless there are ``count`` rows."""
    if hasattr(y, "columns"):
        table = as_table(y, "y")
    else:
        array = as_array(y, "y")
        if array.ndim == 1:
            columns = {name: as_column(array if hasattr(y, "detach") else y)}
        elif array.ndim == 2 and array.shape[1]:
            names = [name] if array.shape[1] == 1 else [f"{name}.{i}" for i in range(len(array.T))]
            columns = {n: as_column(values) for n, values in zip(names, array.T, strict=True)}
        else:
            raise UserError(
                "y must be one target for each row, of shape (n,), or several, of shape "
                f"(n, targets), got {array.shape}."
            )
        table = Table(columns, "y", named=False)
    if len(table) != count:
        raise UserError(f"y has {len(table):,} targets and X has {count:,} rows; pass as many.")
    return table


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
