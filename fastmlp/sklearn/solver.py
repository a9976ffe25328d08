"""Epochs of scikit-learn's solvers sgd and adam, each in one call of the kernels."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import xlogy
from sklearn.neural_network import _stochastic_optimizers as schedules
from torch import Tensor

from fastmlp.ops.step_config import Network, zero_state
from fastmlp.ops.train_steps import StepConfig, train_steps_

CHUNK_BYTES = 64 << 20
"""About how much memory the rows of a sparse matrix take at a time as a dense one."""


def tensor_of(array: NDArray[Any]) -> Tensor:
    """Return a tensor on the memory of an array where that is contiguous, also of one that may not
    be written to."""
    array = np.ascontiguousarray(array)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


class EpochSolver:
    """Trains ``parameters`` in place; ``state`` is the optimizer's, ``schedule`` says the learning
    rate and when to stop: scikit-learn's own object, which keeps no other state here."""

    def __init__(
        self,
        estimator: Any,
        parameters: list[Tensor],
        config: StepConfig,
        state: dict[str, list[Tensor]] | None = None,
    ) -> None:
        self._parameters, self._config = parameters, config
        self.state = zero_state(parameters, config) if state is None else state
        e = estimator
        if e.solver == "sgd":
            self.schedule: Any = schedules.SGDOptimizer(
                [],
                e.learning_rate_init,
                e.learning_rate,
                e.momentum,
                e.nesterovs_momentum,
                e.power_t,
            )
        else:
            self.schedule = schedules.AdamOptimizer([], e.learning_rate_init)
        self._rows: tuple[Any, Tensor, Tensor | None] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the training rows out of pickles and copies."""
        return {**self.__dict__, "_rows": None}

    def take_rows(self, x: Any, targets: Tensor, weights: NDArray[Any] | None) -> None:
        """Say what to train on: an array or a sparse matrix (n, inputs), targets, weights (n,)."""
        x = x.tocsr() if sparse.issparse(x) else tensor_of(x)
        kept = None if weights is None else tensor_of(np.asarray(weights, dtype=np.float64))
        self._rows = (x, targets, kept)
        self._constants = self._constant_losses()

    def epoch(self, order: NDArray[np.int64]) -> float:
        """Take an epoch's steps, the rows in this order; return scikit-learn's loss of it: the mean
        over its rows of their batches' losses, weight decay included, in a squared error also over
        outputs."""
        batch, losses = self._config.batch_size, []
        for first in range(0, len(order), self._chunk()):
            losses.append(self._steps(order[first : first + self._chunk()]))
        counts = np.full(len(np.concatenate(losses)), batch, dtype=np.float64)
        counts[-1] = len(order) - batch * (len(counts) - 1)
        mean = float(np.concatenate(losses) @ counts / len(order))
        if self._config.loss == "squared_error":
            mean /= self._config.decay_in_loss
        return mean + self._constant(order, counts)

    def _steps(self, order: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the losses of the steps over these rows."""
        assert self._rows is not None
        x, targets, weights = self._rows
        if sparse.issparse(x):
            x, chosen = tensor_of(x[order].toarray()), torch.from_numpy(order)
            targets = targets[chosen]
            weights = None if weights is None else weights[chosen]
            order = np.arange(len(order))
        network = Network(
            self._parameters,
            self._config,
            torch.from_numpy(order),
            float(self.schedule.learning_rate),
            self.state,
        )
        (found,) = train_steps_([network], x, targets, row_weights=weights)
        losses: NDArray[np.float64] = found.losses.numpy()
        return losses

    def _chunk(self) -> int:
        """Return how many rows a call takes: whole batches."""
        assert self._rows is not None
        x = self._rows[0]
        if not sparse.issparse(x):
            return max(1, len(x))
        batch = self._config.batch_size
        batch_bytes = int(x.dtype.itemsize * max(x.shape[1], 1) * batch)
        return max(1, CHUNK_BYTES // batch_bytes) * batch

    def _constant_losses(self) -> NDArray[np.float64] | None:
        """Return the part of a row's Poisson loss in scikit-learn that depends on the target alone,
        which fastmlp's leaves out; None for other losses."""
        assert self._rows is not None
        if self._config.loss != "poisson":
            return None
        y = self._rows[1].numpy().astype(np.float64)
        constants: NDArray[np.float64] = (xlogy(y, y) - y).sum(1)
        return constants

    def _constant(self, order: NDArray[np.int64], counts: NDArray[np.float64]) -> float:
        """Return the mean of that part over the epoch, weighted within each batch."""
        if self._constants is None:
            return 0.0
        assert self._rows is not None
        weights = self._rows[2]
        factors = np.ones(len(order)) if weights is None else weights.numpy()[order]
        starts = np.arange(len(counts)) * self._config.batch_size
        sums = np.add.reduceat(factors * self._constants[order], starts)
        return float((sums / np.add.reduceat(factors, starts)) @ counts / len(order))
