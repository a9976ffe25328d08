"""The state of a training run, and its form in files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from typing import Any

from torch import Tensor

from fastmlp.data.dataset import current_name
from fastmlp.engines.metrics import EpochMetrics, EpochRecord, best_of
from fastmlp.utils.value_checks import (
    Fields,
    check_fields,
    is_count,
    is_duration,
    is_finite,
    is_flag,
    is_list,
    is_object,
    is_rate,
    is_share,
    is_tensor,
    is_text,
    optional,
)

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
    if not isinstance(values, dict) or _format_of(values) != FORMAT:
        raise ValueError("it has another format")
    values = {key: value for key, value in values.items() if key != "format"}
    check_fields("the state", values, _STATE)
    for key, tensors in (*values["engine"].items(), ("best", values["best"])):
        _check_tensors(key, tensors)
        if not all(map(_NUMBERS.get(key, _all_finite), tensors.values())):
            raise ValueError(f"{key} has numbers that it cannot have")
    parameters = values["engine"].get("parameters", {})
    if bool(values["best"]) != bool(values["history"]):
        raise ValueError("it has an epoch without parameters of the best, or these without one")
    if values["best"] and _layout(values["best"]) != _layout(parameters):
        raise ValueError("the parameters of the best epoch do not fit the network")
    name, _, digest = values["fingerprint"].rpartition(":")
    return Checkpoint(
        **values
        | {
            "fingerprint": f"{current_name(name)}:{digest}",
            "history": epochs_of(values["history"]),
            "partial": _partial(values["partial"]),
        }
    )


def _format_of(values: Mapping[str, Any]) -> int | None:
    found = values.get("format")
    return found if type(found) is int else None


_STATE: Fields = {
    "fingerprint": lambda value: is_text(value) and ":" in value,
    "engine_reason": is_text,
    "engine": is_object,
    "history": is_list,
    "partial": is_object,
    "partial_seconds": is_duration,
    "best": is_object,
    "seconds": is_duration,
}
_RECORD: Fields = {
    "epoch": is_count,
    "train_loss": is_finite,
    "train_acc": is_share,
    "val_loss": is_finite,
    "val_acc": is_share,
    "lr": is_rate,
    "seconds": is_duration,
    "images_per_s": is_duration,
}
_PARTIAL: Fields = {
    "steps": is_count,
    "samples": is_count,
    "loss_sum": is_finite,
    "correct": is_count,
    "finished": is_flag,
    "weight": optional(is_duration),
}


def _check_tensors(what: str, tensors: object) -> None:
    if not is_object(tensors) or not all(map(is_tensor, tensors.values())):  # type: ignore[attr-defined]
        raise ValueError(f"{what} does not hold tensors by name")


def _all_finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())


def _all_known(tensor: Tensor) -> bool:
    return not tensor.isnan().any()


def _all_positive(tensor: Tensor) -> bool:
    return bool((tensor >= 0).all())


_NUMBERS: Mapping[str, Callable[[Tensor], bool]] = {
    "momentum": _all_known,
    "exp_avg": _all_known,
    "exp_avg_sq": _all_positive,  # or infinite, once a gradient was large
    "step": _all_positive,
}
"""What the numbers of an optimizer's tensors are; parameters are finite."""


def _layout(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Any, ...]]:
    return {name: (tensor.dtype, *tensor.shape) for name, tensor in tensors.items()}


def epochs_of(rows: Sequence[Any]) -> list[EpochRecord]:
    """Return the epochs of a run, in order; raise ValueError where they are none."""
    for number, row in enumerate(rows, 1):
        check_fields(f"epoch {number}", row, _RECORD)
        if row["epoch"] != number:
            raise ValueError(f"epoch {number} is called {row['epoch']}")
    return [EpochRecord(**row) for row in rows]


def _partial(values: dict[str, Any]) -> EpochMetrics:
    values = {"weight": None, **values}  # which a run from before rows had weights lacks
    check_fields("the epoch under way", values, _PARTIAL)
    return EpochMetrics(**values)


def layer_shapes(sizes: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the parameters of a network of these layer widths, by name."""
    shapes: dict[str, tuple[int, ...]] = {}
    for i, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        shapes |= {f"{2 * i}.weight": (fan_out, fan_in), f"{2 * i}.bias": (fan_out,)}
    return shapes


def parameters_of(sizes: Sequence[int], values: Any) -> dict[str, Tensor]:
    """Return the content of ``best.pt``; raise ValueError where it is not the parameters of a
    network of these layer widths."""
    wanted = layer_shapes(sizes)
    if not isinstance(values, dict) or list(values) != list(wanted):
        raise ValueError(f"it must hold {', '.join(wanted)}")
    for name, tensor in values.items():
        if not is_tensor(tensor) or tensor.shape != wanted[name]:
            raise ValueError(f"{name} must be float32 of shape {wanted[name]}")
        if not tensor.isfinite().all():
            raise ValueError(f"{name} has numbers that are not finite")
    return values
