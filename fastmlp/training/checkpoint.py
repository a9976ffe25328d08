"""The state of a training run, and its form in files."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from fastmlp.data.dataset import current_name
from fastmlp.engines.metrics import EpochMetrics, EpochRecord, best_of

FORMAT = 1
"""The version of ``resume.pt``."""


@dataclass
class Checkpoint:
    """The state of a run: all that changes in its course, and the fingerprint of its data."""

    fingerprint: str
    """The hash of the data, which must be the same when the run resumes."""
    engine_reason: str
    """Why the engine was chosen."""
    engine: dict[str, dict[str, Tensor]]
    """The ``state_dict`` of parameters and optimizer state."""
    history: list[EpochRecord] = field(default_factory=list)
    """The finished epochs."""
    partial: EpochMetrics = field(default_factory=EpochMetrics)
    """The steps done of the epoch after them."""
    partial_seconds: float = 0.0
    """The time that those steps took."""
    best: dict[str, Tensor] = field(default_factory=dict)
    """The parameters after the best epoch; empty before the first."""
    seconds: float = 0.0
    """The duration of the run in all sittings, without loading the data."""

    @property
    def best_record(self) -> EpochRecord:
        """The epoch with the highest score, the first of equals."""
        return best_of(self.history)


def state_to_dict(state: Checkpoint) -> dict[str, Any]:
    """Return the content of ``resume.pt``."""
    values = {item.name: getattr(state, item.name) for item in fields(state)}
    values["format"] = FORMAT
    values["history"] = [asdict(record) for record in state.history]
    values["partial"] = asdict(state.partial)
    return values


def state_from_dict(values: Any) -> Checkpoint:
    """Return the state in the content of ``resume.pt``; raise ValueError where it is none."""
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise ValueError("it has another format")
    values = {key: value for key, value in values.items() if key != "format"}
    _check_types("the state", values, _STATE)
    for key in values["engine"]:
        _check_tensors(key, values["engine"][key])
    _check_tensors("best", values["best"])
    parameters = values["engine"].get("parameters", {})
    for name, tensors in (("parameters", parameters), ("best", values["best"])):
        if not all(tensor.isfinite().all() for tensor in tensors.values()):
            raise ValueError(f"{name} has numbers that are not finite")
    if bool(values["best"]) != bool(values["history"]):
        raise ValueError("it has an epoch without parameters of the best, or these without one")
    if values["best"] and _layout(values["best"]) != _layout(parameters):
        raise ValueError("the parameters of the best epoch do not fit the network")
    name, _, digest = values["fingerprint"].rpartition(":")
    return Checkpoint(
        **values
        | {
            "fingerprint": f"{current_name(name)}:{digest}",
            "history": _history(values["history"]),
            "partial": _partial(values["partial"]),
        }
    )


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


def _is_finite(value: object) -> bool:
    return _is_number(value) and math.isfinite(value)  # type: ignore[arg-type]


def _is_duration(value: object) -> bool:
    return _is_finite(value) and value >= 0  # type: ignore[operator]


def _is_share(value: object) -> bool:
    """Return whether it is from 0 to 1, or the nan of a regression."""
    return _is_number(value) and (math.isnan(value) or 0 <= value <= 1)  # type: ignore


_Kinds = Mapping[str, Callable[[object], bool]]
_STATE: _Kinds = {
    "fingerprint": lambda value: isinstance(value, str) and ":" in value,
    "engine_reason": lambda value: isinstance(value, str),
    "engine": lambda value: isinstance(value, dict),
    "history": lambda value: isinstance(value, list),
    "partial": lambda value: isinstance(value, dict),
    "partial_seconds": _is_duration,
    "best": lambda value: isinstance(value, dict),
    "seconds": _is_duration,
}
_RECORD: _Kinds = {
    "epoch": _is_count,
    "train_loss": _is_finite,
    "train_acc": _is_share,
    "val_loss": _is_finite,
    "val_acc": _is_share,
    "lr": _is_duration,
    "seconds": _is_duration,
    "images_per_s": _is_duration,
}
_PARTIAL: _Kinds = {
    "steps": _is_count,
    "samples": _is_count,
    "loss_sum": _is_finite,
    "correct": _is_count,
    "finished": lambda value: type(value) is bool,
    "weight": lambda value: value is None or _is_duration(value),
}


def _check_types(what: str, values: object, kinds: _Kinds) -> None:
    """Raise ValueError unless ``values`` is a dict of just these keys with such values."""
    if not isinstance(values, dict) or set(values) != set(kinds):
        raise ValueError(f"{what} does not hold {', '.join(kinds)}")
    for key, is_right in kinds.items():
        if not is_right(values[key]):
            raise ValueError(f"{key} of {what} cannot be {str(values[key])[:50]}")


def _check_tensors(what: str, tensors: object) -> None:
    if not isinstance(tensors, dict) or not all(
        isinstance(key, str) and type(value) is Tensor and value.layout == torch.strided
        for key, value in tensors.items()
    ):
        raise ValueError(f"{what} does not hold tensors by name")


def _layout(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Any, ...]]:
    return {name: (tensor.dtype, *tensor.shape) for name, tensor in tensors.items()}


def _history(rows: Sequence[Any]) -> list[EpochRecord]:
    for number, row in enumerate(rows, 1):
        _check_types(f"epoch {number}", row, _RECORD)
        if row["epoch"] != number:
            raise ValueError(f"epoch {number} is called {row['epoch']}")
    return [EpochRecord(**row) for row in rows]


def _partial(values: dict[str, Any]) -> EpochMetrics:
    values = {"weight": None, **values}  # which a run from before rows had weights lacks
    _check_types("the epoch under way", values, _PARTIAL)
    return EpochMetrics(**values)
