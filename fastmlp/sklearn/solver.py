"""What scikit-learn's solvers ask of the kernels: epochs of sgd and adam, each in one call, and the
loss and gradient of all rows for lbfgs."""

from __future__ import annotations

import time
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import xlogy
from sklearn.neural_network import _stochastic_optimizers as schedules
from torch import Tensor

from fastmlp.engines.recorded_steps import RecordedSteps
from fastmlp.engines.registry import resolve_device
from fastmlp.ops.rows import Rows
from fastmlp.ops.step_config import Network, zero_state
from fastmlp.ops.train_steps import RepeatedSteps, StepConfig
from fastmlp.utils.errors import UserError

SECONDS_AT_ONCE = 0.1
"""How long epochs may run in one call: until it ends, Ctrl-C is not heard."""


def device_of(name: str) -> torch.device:
    """Return the device of that name, see :func:`resolve_device`; raise ValueError where it cannot
    be had."""
    try:
        return resolve_device(name)
    except RuntimeError as error:
        raise ValueError(
            f"device must be 'cpu', 'cuda', 'cuda:1' or 'auto', got {name!r}"
        ) from error
    except UserError as error:
        raise ValueError(str(error).replace("use --device cpu", "use device='cpu'")) from error


def tensor_of(array: NDArray[Any]) -> Tensor:
    """Return a tensor on the memory of an array where that is contiguous, also of one that may not
    be written to."""
    array = np.ascontiguousarray(array)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def rows_of(x: Any) -> Tensor:
    """Return the rows of an array or of a sparse matrix as a tensor on the same memory."""
    if not sparse.issparse(x):
        return tensor_of(x)
    x = x.tocsr()
    parts = (tensor_of(x.indptr), tensor_of(x.indices), tensor_of(x.data))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(*parts, size=x.shape, check_invariants=False)


class _TrainingRows:
    """Rows to train on: an array or a sparse matrix (n, inputs), targets, weights (n,) or None."""

    def __init__(
        self, x: Any, targets: Tensor, weights: NDArray[Any] | None, config: StepConfig
    ) -> None:
        self.x = rows_of(x)
        self.targets = targets
        self.weights = None if weights is None else tensor_of(np.asarray(weights, dtype=np.float64))
        squared = config.loss == "squared_error"
        self.outputs = targets.shape[1] if squared and targets.dim() == 2 else 1
        """What scikit-learn divides a row's loss by, but not its gradient."""
        self.constants = self._constants() if config.loss == "poisson" else None

    def __len__(self) -> int:
        return len(self.targets)

    def steps_of(self, network: Network) -> RepeatedSteps | RecordedSteps:
        """Return what trains the network on them, where its parameters are."""
        device = network.parameters[0].device
        if device.type == "cpu":
            return RepeatedSteps(network, Rows(self.x, self.targets, self.weights))
        if self.x.layout != torch.strided:
            raise ValueError(
                f"sparse rows cannot be trained on {device}; use device='cpu', or X.toarray()"
            )
        given = (None if t is None else t.to(device) for t in (self.x, self.targets, self.weights))
        return RecordedSteps(network, Rows(*given))  # type: ignore[arg-type]

    def constant(self, order: NDArray[np.int64], batch: int) -> float:
        """Return the part of the epoch's loss that depends on targets alone, which scikit-learn
        counts in the Poisson loss and fastmlp does not."""
        if self.constants is None:
            return 0.0
        factors = np.ones(len(order)) if self.weights is None else self.weights.numpy()[order]
        starts = np.arange(0, len(order), batch)
        sums = np.add.reduceat(factors * self.constants[order], starts)
        counts = np.diff([*starts, len(order)])
        return float((sums / np.add.reduceat(factors, starts)) @ counts / len(order))

    def _constants(self) -> NDArray[np.float64]:
        y = self.targets.numpy().astype(np.float64)
        constants: NDArray[np.float64] = (xlogy(y, y) - y).sum(1)
        return constants


class EpochSolver:
    """Trains ``parameters`` on a device. They stay on the CPU, where they change in place with each
    epoch; ``schedule`` says the learning rate and when to stop: scikit-learn's own object, which
    keeps no other state here. ``seed`` is dropout's."""

    def __init__(
        self,
        estimator: Any,
        parameters: list[Tensor],
        config: StepConfig,
        seed: int,
        device: torch.device,
    ) -> None:
        self.parameters, self._config = parameters, config
        self._seed, self._epochs, self._device = seed, 0, device
        self._seconds: float | None = None  # that an epoch takes
        self._state = zero_state(parameters, config)
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
        self._rows: _TrainingRows | None = None
        self._steps: RepeatedSteps | RecordedSteps | None = None

    def goes_on_from(self, earlier: EpochSolver) -> None:
        """Take over the state of one that trained these parameters before."""
        self.schedule, self._state = earlier.schedule, earlier._optimizer_state
        self._seed, self._epochs = earlier._seed, earlier._epochs

    @property
    def _optimizer_state(self) -> dict[str, list[Tensor]]:
        """The optimizer's tensors as they are now, on the CPU."""
        state = self._state if self._steps is None else self._steps.network.state
        return {kind: [tensor.cpu() for tensor in kept] for kind, kept in state.items()}

    def __getstate__(self) -> dict[str, Any]:
        """Leave the training rows out of pickles and copies."""
        state = self._optimizer_state
        return {**self.__dict__, "_rows": None, "_steps": None, "_state": state}

    def take_rows(self, x: Any, targets: Tensor, weights: NDArray[Any] | None) -> None:
        """Say what to train on: an array or a sparse matrix (n, inputs), targets, weights (n,)."""
        self._rows = _TrainingRows(x, targets, weights, self._config)
        order = torch.empty(0, dtype=torch.int64)  # comes with the epochs
        to = self._device
        network = Network(
            [tensor.to(to) for tensor in self.parameters],
            self._config,
            order,
            0.0,
            {kind: [tensor.to(to) for tensor in kept] for kind, kept in self._state.items()},
            seed=self._seed,
        )
        self._steps = self._rows.steps_of(network)

    @property
    def epochs_at_once(self) -> int:
        """How many epochs a call should take that is to end soon, by the time that one took."""
        if self._seconds is None or isinstance(self._steps, RecordedSteps):
            return 1
        return max(1, int(SECONDS_AT_ONCE / self._seconds))

    def epochs(self, orders: list[NDArray[np.int64]]) -> list[float]:
        """Take the steps of some epochs, the rows of each in its order; return scikit-learn's loss
        of each: the mean over its rows of their batches' losses, weight decay included, in a
        squared error also over outputs. On a GPU it is one epoch."""
        assert self._rows is not None
        assert self._steps is not None
        begin, network = time.perf_counter(), self._steps.network
        order = orders[0] if len(orders) == 1 else np.concatenate(orders)
        network.order, network.epochs = torch.from_numpy(order), len(orders)
        network.epoch, network.lr = self._epochs, float(self.schedule.learning_rate)
        losses = self._steps.take().losses.numpy().reshape(len(orders), -1)
        for tensor, trained in zip(self.parameters, network.parameters, strict=True):
            if tensor is not trained:
                tensor.copy_(trained)
        self._epochs += len(orders)
        self._seconds = (time.perf_counter() - begin) / len(orders)
        batch, rows = self._config.batch_size, len(orders[0])
        counts = np.full(losses.shape[1], float(batch))
        counts[-1] = rows - (len(counts) - 1) * batch
        means = (losses * counts).sum(1) / rows / self._rows.outputs
        return [
            float(mean) + self._rows.constant(order, batch)
            for mean, order in zip(means, orders, strict=True)
        ]


class FullBatch:
    """The loss of all rows, and its gradient; ``alpha`` is the penalty's factor."""

    def __init__(
        self,
        config: StepConfig,
        alpha: float,
        rows: tuple[Any, Tensor, NDArray[Any] | None],
    ) -> None:
        self._rows = _TrainingRows(*rows, config)
        # A step's gradient is what an empty momentum becomes; the learning rate 0 moves nothing.
        self._config = replace(config, batch_size=len(self._rows), momentum=0.5)
        self._alpha = alpha
        weights = self._rows.weights
        self._total = len(self._rows) if weights is None else float(weights.sum())

    def loss_and_gradients(self, parameters: list[Tensor]) -> tuple[float, list[Tensor]]:
        """Return scikit-learn's loss and its gradient of each parameter."""
        order = torch.arange(len(self._rows))
        network = Network(parameters, self._config, order, 0.0)
        loss = float(self._rows.steps_of(network).take().losses[0]) / self._rows.outputs
        gradients, decay = network.state["momentum"], self._alpha / self._total
        for gradient, weight in zip(gradients[::2], parameters[::2], strict=True):
            gradient.add_(weight, alpha=decay)
            loss += decay / 2 * float(weight.double().square().sum())
        return loss + self._rows.constant(order.numpy(), len(order)), gradients
