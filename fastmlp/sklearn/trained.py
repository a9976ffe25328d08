"""What the estimators replace of scikit-learn's: how epochs of the solvers sgd and adam are run,
where lbfgs gets its loss and gradient, and how a network predicts.

All the rest is scikit-learn's own: parameters and their checks, attributes, stopping rules,
``partial_fit``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import sklearn.neural_network as theirs
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from fastmlp.ops.losses import loss_row
from fastmlp.ops.predict_rows import predict_rows
from fastmlp.ops.train_steps import StepConfig
from fastmlp.sklearn.held_out import HeldOutRows
from fastmlp.sklearn.solver import EpochSolver, FullBatch, device_of, rows_of, tensor_of
from fastmlp.training.predictor import as_module

if TYPE_CHECKING:
    from typing_extensions import Self

ACTIVATIONS = {
    **{"identity": "none", "logistic": "sigmoid", "tanh": "tanh", "relu": "relu"},
    **{name: name for name in ("gelu", "silu", "leaky_relu")},
}
"""fastmlp's names of scikit-learn's activations, and those that only fastmlp has."""
LOSSES = {
    "softmax": "cross_entropy",
    "logistic": "binary_cross_entropy",
    "identity": "squared_error",
    "exp": "poisson",
}
"""The loss that belongs to the activation of the last layer."""


class Trained:
    """Mixed in before an estimator of scikit-learn's."""

    if TYPE_CHECKING:  # the attributes are scikit-learn's
        t_: int
        _best_coefs: list[NDArray[Any]]
        _best_intercepts: list[NDArray[Any]]

        def __getattr__(self, name: str) -> Any: ...

        def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self: ...

        def partial_fit(self, X: Any, y: Any, *args: Any, **kwargs: Any) -> Self: ...

        def predict(self, X: Any) -> NDArray[Any]: ...

        def score(self, X: Any, y: Any, sample_weight: Any = None) -> float: ...

    def _fit_stochastic(
        self,
        X: Any,
        y: NDArray[Any],
        sample_weight: NDArray[Any] | None,
        *rest: Any,
    ) -> None:
        """Run epochs of sgd or adam until one of scikit-learn's rules ends it."""
        incremental = bool(rest[-1])
        if self.early_stopping and incremental:
            raise ValueError("partial_fit does not support early_stopping=True")
        if self.weight_decay is not None and self.solver != "adam":
            raise ValueError(f"weight_decay is for the solver 'adam', not for {self.solver!r}")
        sample_weight = self._class_weighted(y, sample_weight, incremental)
        train, held = (X, y, sample_weight), None
        if self.early_stopping:
            train, held = self._split(X, y, sample_weight)
        held_out = (held, None, None)  # what scikit-learn hands on to _score
        solver = self._solver_for(train, incremental)
        rows = len(train[1])
        losses = self._losses(solver, rows, incremental)
        self.n_iter_ = 0
        try:
            while self.n_iter_ < self.max_iter:
                self.loss_ = next(losses)
                if not np.isfinite(self.loss_):
                    raise ValueError(
                        "Solver produced non-finite parameter weights. The input data may contain "
                        "large values and need to be preprocessed."
                    )
                self.n_iter_ += 1
                self.t_ += rows
                self.loss_curve_.append(self.loss_)
                if self.verbose:
                    print(f"Iteration {self.n_iter_}, loss = {self.loss_:.8f}")
                self._update_no_improvement_count(self.early_stopping, *held_out)
                solver.schedule.iteration_ends(self.t_)
                if self._no_improvement_count > self.n_iter_no_change and self._settles(solver):
                    break
                if incremental or self._asked_to_stop():
                    break
                if self.n_iter_ == self.max_iter:
                    warnings.warn(
                        f"Stochastic Optimizer: Maximum iterations ({self.max_iter}) reached and "
                        "the optimization hasn't converged yet.",
                        ConvergenceWarning,
                        stacklevel=4,
                    )
        except KeyboardInterrupt:
            warnings.warn("Training interrupted by user.", stacklevel=4)
        if self.early_stopping:
            self.coefs_, self.intercepts_ = self._best_coefs, self._best_intercepts

    def _losses(self, solver: EpochSolver, rows: int, incremental: bool) -> Iterator[float]:
        """Yield the loss of one epoch after the other."""
        order = np.arange(rows)
        while True:
            orders = []
            for _ in range(self._epochs_at_once(solver, incremental)):
                if self.shuffle:
                    order = order[self._permutation(rows)]
                orders.append(order)
            yield from solver.epochs(orders)

    def _epochs_at_once(self, solver: EpochSolver, incremental: bool) -> int:
        """Return how many epochs nothing can end or change, nor wants to see one by one."""
        changes = self.solver == "sgd" and self.learning_rate == "invscaling"
        if incremental or changes or self.early_stopping or self.verbose or self.callbacks:
            return 1
        left = self.n_iter_no_change - self._no_improvement_count + 1
        return max(1, int(min(self.max_iter - self.n_iter_, left, solver.epochs_at_once)))

    def _permutation(self, rows: int) -> NDArray[np.int64]:
        """Return the one that ``sklearn.utils.shuffle`` draws, without its checks."""
        permutation = np.arange(rows)
        self._random_state.shuffle(permutation)
        return permutation

    def _fit_lbfgs(
        self, X: Any, y: NDArray[Any], sample_weight: NDArray[Any] | None, *rest: Any
    ) -> None:
        """Fit by scipy's optimizer on the kernels' loss and gradient."""
        if self.dropout or self.weight_decay is not None:
            raise ValueError("dropout and weight_decay are for the solvers 'sgd' and 'adam'")
        if device_of(self.device).type != "cpu":
            raise ValueError("solver 'lbfgs' runs on the CPU alone; use device='cpu', or 'adam'")
        sample_weight = self._class_weighted(y, sample_weight, incremental=False)
        rows = (X, self._targets(y), sample_weight)
        self._full_batch = FullBatch(self._network_config(), self.alpha, rows)
        try:
            super()._fit_lbfgs(X, y, sample_weight, *rest)  # type: ignore[misc]
        finally:
            del self._full_batch

    def _loss_grad_lbfgs(self, packed: NDArray[Any], *rest: Any) -> tuple[float, NDArray[Any]]:
        """Return the loss over all rows and its gradient, packed as scikit-learn does."""
        self._unpack(packed)
        loss, gradients = self._full_batch.loss_and_gradients(
            _tensors(self.coefs_, self.intercepts_)
        )
        weights = [gradient.numpy().T.ravel() for gradient in gradients[::2]]
        biases = [gradient.numpy() for gradient in gradients[1::2]]
        return loss, np.concatenate(weights + biases)

    def _class_weighted(
        self, y: NDArray[Any], sample_weight: NDArray[Any] | None, incremental: bool
    ) -> NDArray[Any] | None:
        """Return the rows' weights times those of their classes."""
        given = getattr(self, "class_weight", None)
        if given is None:
            return sample_weight
        if incremental and given == "balanced":
            raise ValueError(
                "class_weight='balanced' needs all rows at once, and partial_fit sees some: give "
                "a dict of weights, such as sklearn.utils.class_weight.compute_class_weight makes."
            )
        labels = self._label_binarizer.inverse_transform(y)
        weights: NDArray[Any] = compute_sample_weight(given, labels)
        return weights if sample_weight is None else weights * sample_weight

    def _asked_to_stop(self) -> bool:
        """Call each of ``callbacks``; return whether one of them returned True."""
        answers = [callback(self) for callback in self.callbacks or ()]
        return any(answer is True for answer in answers)

    def _split(
        self, X: Any, y: NDArray[Any], sample_weight: NDArray[Any] | None
    ) -> tuple[tuple[Any, ...], HeldOutRows]:
        """Return the rows to train on, X, targets and weights, and those that tell when to stop."""
        classes = isinstance(self, theirs.MLPClassifier)
        arrays = [X, y] if sample_weight is None else [X, y, sample_weight]
        parts = train_test_split(
            *arrays,
            random_state=self._random_state,
            test_size=self.validation_fraction,
            stratify=y if classes and self.n_outputs_ == 1 else None,
        )
        train, (x, targets, weights) = [*parts[::2], None][:3], [*parts[1::2], None][:3]
        if x.shape[0] < 2:
            raise ValueError(
                "The validation set is too small. Increase 'validation_fraction' or the size of "
                "your dataset."
            )
        return tuple(train), HeldOutRows(
            rows_of(x),
            targets,
            weights,
            activation=ACTIVATIONS[self.activation],
            loss=LOSSES[self.out_activation_],
            classes=len(self.classes_) if classes else None,
        )

    def _score(self, held: HeldOutRows, *_: Any, **__: Any) -> float:
        """Return what tells when to stop, of the network as it is now."""
        return held.score(self._optimizer.parameters)

    def _solver_for(self, train: tuple[Any, ...], incremental: bool) -> EpochSolver:
        """Return what runs the epochs: of an earlier ``partial_fit`` its state goes on."""
        X, y, weights = train
        earlier = getattr(self, "_optimizer", None) if incremental else None
        parameters = _tensors(self.coefs_, self.intercepts_)
        was_best = getattr(self, "_best_coefs", None) is self.coefs_
        # The arrays show the very numbers that the kernels change.
        self.coefs_ = [weight.numpy().T for weight in parameters[::2]]
        self.intercepts_ = [bias.numpy() for bias in parameters[1::2]]
        if was_best:  # in a warm start scikit-learn trains its best ones on, and so do we
            self._best_coefs, self._best_intercepts = self.coefs_, self.intercepts_
        seed = int(self._random_state.randint(2**31 - 1)) if self.dropout else 0
        config, device = self._step_config(len(y)), device_of(self.device)
        self._optimizer = EpochSolver(self, parameters, config, seed, device)
        if earlier is not None:
            self._optimizer.goes_on_from(earlier)
        self._optimizer.take_rows(X, self._targets(y), weights)
        return self._optimizer

    def _network_config(self) -> StepConfig:
        """Return what the network and its loss are."""
        loss = LOSSES[self.out_activation_]
        return StepConfig(
            batch_size=1,
            activation=ACTIVATIONS[self.activation],
            loss=loss,
            loss_scale=0.5 if loss == "squared_error" else 1.0,
        )

    def _step_config(self, rows: int) -> StepConfig:
        """Return what a step computes, in scikit-learn's form of each optimizer."""
        batch = min(200, rows)
        if self.batch_size != "auto":
            if self.batch_size > rows:
                warnings.warn(
                    "Got `batch_size` less than 1 or larger than sample size. It is going to be "
                    "clipped",
                    stacklevel=5,
                )
            batch = int(np.clip(self.batch_size, 1, rows))
        network = self._network_config()
        options: dict[str, Any] = {"dropout": self.dropout, "decay_biases": False}
        if self.solver == "sgd":
            options |= {"momentum": self.momentum, "lr_in_momentum": self.momentum > 0}
            options["nesterov"] = self.nesterovs_momentum and self.momentum > 0
        else:
            options |= {"optimizer": "adam", "betas": (self.beta_1, self.beta_2)}
            options |= {"eps": self.epsilon, "epsilon_hat": True}
        if self.weight_decay is None:
            # Where scikit-learn's loss is a mean over outputs, epoch divides by them.
            outputs = self.n_outputs_ if network.loss == "squared_error" else 1
            options |= {"weight_decay": self.alpha, "decay_per_row": True}
            options["decay_in_loss"] = float(outputs)
        else:
            options |= {"optimizer": "adamw", "weight_decay": self.weight_decay}
        return replace(network, batch_size=batch, **options)

    def _targets(self, y: NDArray[Any]) -> Tensor:
        """Return labels (n,) for softmax, else numbers (n, outputs)."""
        if self.out_activation_ == "softmax":
            return torch.from_numpy(y.argmax(1).astype(np.int64))
        return tensor_of(y.astype(self.coefs_[0].dtype, copy=False))

    def _settles(self, solver: EpochSolver) -> bool:
        """Return whether to stop, where there was no improvement for long enough; the learning rate
        "adaptive" is lowered first."""
        what = "Validation score" if self.early_stopping else "Training loss"
        message = (
            f"{what} did not improve more than tol={self.tol:f} for {self.n_iter_no_change} "
            "consecutive epochs."
        )
        if solver.schedule.trigger_stopping(message, self.verbose):
            return True
        self._no_improvement_count = 0
        return False

    def _forward_pass_fast(self, X: Any, check_input: bool = True) -> NDArray[Any]:
        """Return what the last layer's activation gives, (n, outputs)."""
        if check_input:
            X = validate_data(self, X, accept_sparse=["csr", "csc"], reset=False)
        parameters = _tensors(self.coefs_, self.intercepts_)
        link = loss_row(LOSSES[self.out_activation_]).link
        dtype = self.coefs_[0].dtype
        X = X.astype(dtype, copy=False)
        outputs = predict_rows(parameters, rows_of(X), activation=ACTIVATIONS[self.activation])
        probabilities: NDArray[Any] = link(outputs).numpy()
        return probabilities

    def to_torch(self) -> nn.Sequential:
        """Return the fitted network as a module of ``torch.nn``, with copies of its parameters:
        from rows (n, features) to what the last layer's activation gets, (n, outputs)."""
        check_is_fitted(self)
        parameters = _tensors(self.coefs_, self.intercepts_)
        names = [f"{i - i % 2}.{'bias' if i % 2 else 'weight'}" for i in range(len(parameters))]
        return as_module(dict(zip(names, parameters, strict=True)), ACTIVATIONS[self.activation])


def _tensors(coefs: list[NDArray[Any]], intercepts: list[NDArray[Any]]) -> list[Tensor]:
    """Return weights (outputs, inputs) and biases as fastmlp has them."""
    tensors: list[Tensor] = []
    for coef, intercept in zip(coefs, intercepts, strict=True):
        tensors += [tensor_of(coef.T), tensor_of(intercept)]
    return tensors
