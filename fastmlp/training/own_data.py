"""``fastmlp.fit``: train a network on a user's own rows and targets."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastmlp.data.encoding import TableEncoding
from fastmlp.data.pixels import PixelEncoding, Pixels, as_rows
from fastmlp.data.splits import DataSplits, Subset
from fastmlp.data.tables import Table, as_table
from fastmlp.data.targets import TargetEncoding
from fastmlp.training import api
from fastmlp.training.config import OPTIONS, TrainConfig, config_from_dict
from fastmlp.training.predictor import (
    Encoding,
    Predictor,
    input_tensor,
    target_table,
    target_tensor,
    weight_tensor,
)
from fastmlp.training.run import RunResult
from fastmlp.training.run_directory import RunDirectory
from fastmlp.utils.errors import EXIT_USAGE, UserError

DEFAULTS: dict[str, Any] = {"hidden": (100,), "optimizer": "adam", "lr": 1e-3, "batch_size": 200}
"""Options that have other defaults for a user's own data; lr is Adam's and AdamW's."""
SGD_DEFAULTS: dict[str, Any] = {"lr": 0.02, "momentum": 0.9, "nesterov": True}
"""The same with the optimizer sgd."""
UNSTANDARDISED = ("poisson", "binary_cross_entropy")
"""Losses whose targets are taken as they are."""
CALL_OPTIONS = ("out", "callbacks", "should_stop", "verbose")
"""The arguments of :func:`fastmlp.training.api.fit` beside its configuration and data."""


@dataclass(frozen=True)
class OwnData:
    """A user's rows, split and encoded."""

    splits: DataSplits
    encoding: Encoding


@overload
def fit(x: TrainConfig, y: DataSplits | None = None, **options: Any) -> RunResult: ...
@overload
def fit(x: object, y: object, **options: Any) -> RunResult: ...


def fit(x: object = None, y: object = None, **options: Any) -> RunResult:
    """Train a network on rows ``x`` and targets ``y``, and keep the parameters of the best epoch.

    ``x`` (n, columns): NumPy, torch, or a data frame of pandas or polars, whose column names are
    kept; an array of uint8 are pixels. ``y`` (n,): classes, texts or whole numbers, or numbers to
    predict; or several such targets, (n, targets) or a data frame.

    Options are those of :func:`prepare`; the fields of :class:`TrainConfig`, whose defaults are
    :data:`DEFAULTS` here where that has others; ``out``, ``callbacks`` and ``should_stop`` as in
    :func:`fastmlp.training.api.fit`; ``resume``, whether to go on with the run in ``out``, if there
    is one, which was begun with the same rows and options, but perhaps fewer epochs; and
    ``origin``, where the rows are from, as JSON has it, which is kept beside the encoding. The
    result predicts raw rows. Raises :class:`~fastmlp.utils.errors.UserError` for what the user can
    mend.

    With a configuration, ``fit(config, data)``, it is :func:`fastmlp.training.api.fit`.

    >>> import fastmlp, numpy as np
    >>> X = np.random.default_rng(0).normal(size=(300, 4))
    >>> run = fastmlp.fit(X, X[:, 0] + 1, epochs=30, lr=0.01, hidden=32, seed=1)
    >>> [round(number) for number in run.predict([[0, 0, 0, 0], [-1, 0, 0, 0]])]
    [1, 0]
    """
    if isinstance(x, TrainConfig) or "config" in options:
        config = options.pop("config", x)
        data = options.pop("data", y)
        return api.fit(config, data, **options)
    if y is None:
        raise UserError("y is missing; call fit(X, y), or fit(config) for a known data set.")
    origin, resumed = options.pop("origin", None), options.pop("resume", False)
    call = {name: options.pop(name) for name in CALL_OPTIONS if name in options}
    config, own = configured(x, y, options)
    if resumed and call.get("out") is None:
        raise UserError("resume goes on with the run in a folder; pass it as out.")
    if resumed and RunDirectory(call["out"]).resumable:
        folder = call.pop("out")
        _check_same_options(config, RunDirectory(folder).read_config())
        check_same_encoding(RunDirectory(folder), own.encoding)
        result = api.resume(folder, own.splits, epochs=config.epochs, **call)
    else:
        encoding = {**own.encoding.to_dict(), "origin": origin}
        result = api.fit(config, own.splits, encoding=encoding, **call)
    predictor = Predictor(result.config, own.encoding, result.best_parameters)
    return replace(result, predictor=predictor)


def check_same_encoding(folder: RunDirectory, encoding: Encoding) -> None:
    """Raise UserError where raw rows or targets become numbers otherwise than when the run in the
    folder was begun: the numbers may be the same, as of one length in two units."""
    if Encoding.of(folder) != encoding:
        raise UserError(
            "The run was trained on other data: its columns, their units or the names of its "
            "classes differ from the present; pass the same, or another out.",
            options=("out",),
        )


def _check_same_options(new: TrainConfig, old: TrainConfig) -> None:
    """Raise UserError where a run would go on with other options than it was begun with."""
    begun = old.essentials()
    for name, value in new.essentials().items():
        if name != "epochs" and value != begun[name]:
            raise UserError(
                f"The run was begun with {name} {begun[name]} and cannot go on with {value}; pass "
                "the same, or another out.",
                options=(name,),
            )


def configured(x: object, y: object, options: Mapping[str, Any]) -> tuple[TrainConfig, OwnData]:
    """Return the configuration of a run on these rows and targets, and its data.

    ``options`` are fields of :class:`TrainConfig` and arguments of :func:`prepare`.
    """
    given = {name: value for name, value in options.items() if name in OPTIONS}
    rest = {name: value for name, value in options.items() if name not in OPTIONS}
    own = prepare(x, y, loss=given.get("loss"), **_known(rest))
    return _config(given, own), own


def resolve_base(
    base: TrainConfig | Mapping[str, Any], data: DataSplits | tuple[object, object] | None
) -> tuple[TrainConfig, DataSplits | None]:
    """Return the configuration that a search starts from, and its data if there is any: ``base`` is
    one or, with ``data=(X, y)``, the options of :func:`fit` on these rows and targets.

    Raises :class:`UserError` where the two do not go together.
    """
    if isinstance(data, tuple):
        if not isinstance(base, Mapping):
            raise UserError("base must be a dict of the options of fit(X, y, ...) with data=(X, y)")
        config, own = configured(*data, base)
        return config, own.splits
    if not isinstance(base, TrainConfig):
        raise UserError("base must be a TrainConfig, or data=(X, y) must be given")
    return base, data


def prepare(
    x: object,
    y: object,
    *,
    task: str | None = None,
    loss: str | None = None,
    categories: Iterable[str] = (),
    drop: Iterable[str] = (),
    missing: str = "error",
    keep_constant: bool = False,
    validation: float | tuple[object, ...] = 0.2,
    test: tuple[object, ...] | None = None,
    stratify: bool | None = None,
    sample_weight: object = None,
    class_weight: str | Mapping[object, float] | None = None,
    split_seed: int = 0,
    name: str = "own",
    target_name: str = "y",
) -> OwnData:
    """Split rows and targets into training and validation parts, and encode them.

    An array (n, features) uint8 are pixels: they stay so, and the engine normalises them as
    ``normalize`` says.

    ``task`` is classification or regression, by default what the targets look like; where there
    are several, each has two classes, or each is a number.

    ``categories`` are columns to make one-hot, ``drop`` columns to leave out; ``missing`` "mean"
    takes a column's mean for missing numbers, ``keep_constant`` keeps columns with one value.
    ``validation`` is the share of the rows held out, drawn by ``split_seed``, each class in its
    share with ``stratify`` (by default in a classification), or rows and targets of their own, (X,
    y) or with weights (X, y, w); ``test`` are such rows to test on at the end. ``sample_weight``
    (n,) are factors of the rows' losses; ``class_weight`` are factors of the classes' in training,
    "balanced" for n / (classes * rows of the class). ``name`` is that of the data set,
    ``target_name`` that of the target in messages.
    """
    categories, drop = _names("categories", categories), _names("drop", drop)
    by_column = (categories or drop) and not isinstance(x, Pixels)
    rows = as_table(x).without(drop) if by_column else as_rows(x)
    targets = target_table(y, len(rows), target_name)
    weights = weight_tensor(sample_weight, len(rows))
    train, held = np.arange(len(rows)), None
    if not isinstance(validation, tuple):
        whole = TargetEncoding.fit(targets, task)
        task = whole.task
        if stratify and not whole.classes:
            raise UserError("stratify is for the classes of one target; leave it out.")
        labels = whole.apply(targets) if whole.classes and stratify is not False else None
        train, held = split_rows(len(rows), validation, split_seed, labels)
    standardise = loss not in UNSTANDARDISED
    target = TargetEncoding.fit(targets.rows(train), task, standardise=standardise)
    given, seen = None if weights is None else weights[train], rows.rows(train)
    inputs = (
        TableEncoding.fit(seen, categories=categories, missing=missing, keep_constant=keep_constant)
        if isinstance(seen, Table)
        else PixelEncoding.fit(seen)
    )
    encoding = Encoding(inputs, target)
    part = _part(encoding, "X", seen, targets.rows(train), given)
    part = replace(part, weights=_weighted(target, part.labels, given, class_weight))
    if held is None:
        val = _part(encoding, "validation", *_given(validation, "validation"))
    else:
        of_held = None if weights is None else weights[held]
        val = _part(encoding, "X", rows.rows(held), targets.rows(held), of_held)
    tested = None if test is None else _part(encoding, "test", *_given(test, "test"))
    if part.weights is None and any(p is not None and p.weights is not None for p in (val, tested)):
        part = replace(part, weights=torch.ones(len(part.labels)))  # engines take them or do not
    splits = DataSplits(
        part, val, tested, target.outputs, name, rows.source, class_names=target.classes
    )
    return OwnData(splits, encoding)


def _names(option: str, given: Iterable[str]) -> tuple[str, ...]:
    """Return names of columns; raise UserError for a single text, whose letters they would be."""
    if isinstance(given, str):
        raise UserError(f"{option} must be a list of columns, got {given!r}; write [{given!r}].")
    return tuple(given)


def split_rows(
    count: int, share: float, seed: int, labels: NDArray[Any] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows to train on and those held out, a ``share``, each in ascending order; with
    ``labels`` (n,) about this share of each class, but never all of it.

    Raises UserError for a share that is not between 0 and 1 and for too few rows.
    """
    if not isinstance(share, float) or not 0 < share < 1:
        raise UserError(
            f"validation must be a share between 0 and 1, or rows and targets, got {share!r}.",
            options=("validation",),
        )
    random = np.random.default_rng(seed)
    order = random.permutation(count)
    places = np.arange(count)
    if labels is not None:  # places that spread each class evenly over the whole
        order = order[np.argsort(labels[order], kind="stable")]
        _, starts, sizes = np.unique(labels[order], return_index=True, return_counts=True)
        within = places - np.repeat(starts, sizes)
        shares = (within + random.random(len(sizes)).repeat(sizes)) / np.repeat(sizes, sizes)
        shares[starts] = 2.0  # a row of each class stays in training
        order = order[np.argsort(shares, kind="stable")]
    held = min(round(count * share), count - (1 if labels is None else len(starts)))
    of_classes = "" if labels is None else f" of {len(starts)} classes"
    if held < 1 or count - held < 2:
        raise UserError(
            f"X has {count} rows{of_classes}, too few to hold a share of {share:g} out; pass more "
            f"rows, or another validation{', or task regression' if of_classes else ''}.",
            options=("validation", "task"),
        )
    return np.sort(order[held:]), np.sort(order[:held])


def _given(part: object, name: str) -> tuple[object, ...]:
    """Return rows, targets and weights, if any, of a part of the data that was given."""
    if not isinstance(part, tuple) or len(part) not in (2, 3):
        raise UserError(
            f"{name} must be rows and targets, or rows, targets and weights.", options=(name,)
        )
    return part


def _part(
    encoding: Encoding, source: str, rows: object, y: object, weights: object = None
) -> Subset:
    inputs = input_tensor(encoding.inputs, rows, source)
    targets = target_tensor(encoding.target, y, len(inputs))
    return Subset(inputs, targets, weights=weight_tensor(weights, len(inputs)))


def _weighted(
    target: TargetEncoding,
    labels: Tensor,
    weights: Tensor | None,
    class_weight: str | Mapping[object, float] | None,
) -> Tensor | None:
    """Return the weights of the training rows, those of their classes included."""
    if class_weight is None:
        return weights
    if not target.classes:
        what = "a regression" if target.task == "regression" else "several targets"
        raise UserError(f"class_weight is for classes, and this is {what}; leave it out.")
    if class_weight == "balanced":
        counts = torch.bincount(labels, minlength=len(target.classes))
        of_class = len(labels) / (len(counts) * counts)
    elif isinstance(class_weight, Mapping):
        by_name = {str(key): value for key, value in class_weight.items()}
        unknown = set(by_name) - set(target.classes)
        if unknown:
            raise UserError(
                f"class_weight names the class {min(unknown)!r}, which no training row has."
            )
        for name, value in by_name.items():
            if not isinstance(value, Real) or not 0 <= float(value) < math.inf:
                raise UserError(
                    f"class_weight of {name!r} must be a number of at least 0, got {value!r}."
                )
        of_class = torch.tensor([float(by_name.get(name, 1.0)) for name in target.classes])
        if not of_class.any():
            raise UserError("class_weight is 0 for every class; give those that count more.")
    else:
        raise UserError(
            f"class_weight must be balanced or a weight for each class, got {class_weight!r}."
        )
    factors = of_class.float()[labels]
    return factors if weights is None else factors * weights


def _config(given: Mapping[str, Any], own: OwnData) -> TrainConfig:
    """Return the configuration of a run: ``given`` before the defaults for a user's own data."""
    target = own.encoding.target
    loss = "squared_error" if target.task == "regression" else "binary_cross_entropy"
    values = {**DEFAULTS, "loss": "cross_entropy" if target.classes else loss, **given}
    if values["optimizer"] == "sgd":
        values = {**values, **SGD_DEFAULTS, **given}
    return config_from_dict({**values, "dataset": own.splits.name}, "fit")


def _known(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of :func:`prepare`; raise UserError for another one."""
    known = [n for n in prepare.__annotations__ if n not in ("x", "y", "loss", "return")]
    for name in options:
        if name not in known:
            raise UserError(
                f"fit has no option {name!r}; beside the fields of TrainConfig it has "
                f"{', '.join((*known, *CALL_OPTIONS, 'resume'))}.",
                EXIT_USAGE,
            )
    return dict(options)
