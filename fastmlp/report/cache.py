"""Keep the finished experiments of a report in files, from which a stopped run resumes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fastmlp.report.experiments import Outcome, Study
from fastmlp.training.checkpoint import parameters_of
from fastmlp.utils.errors import UserError
from fastmlp.utils.files import write_bytes
from fastmlp.utils.formats import json_bytes, read_json, read_tensors, tensor_bytes
from fastmlp.utils.value_checks import Fields, check_fields, is_duration, is_flag, is_object


@dataclass(frozen=True)
class StudyPart:
    """The outcomes of all networks of a study with one seed, by their names."""

    seconds: float
    outcomes: dict[str, Outcome]
    parameters: dict[str, Tensor] | None = None
    """The ``state_dict`` of the best epoch, kept for the network of the preset ``default``."""


class StudyCache:
    """Files in ``folder``, which is made with the first one.

    A part is found again by its ``key``, everything that decides its content. The file's name has a
    hash of it, so that parts made with other settings or data lie beside each other.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(
        self, study: Study, seed: int, key: Mapping[str, Any], sizes: Sequence[int]
    ) -> StudyPart | None:
        """Return the part saved with the same key, or None if it is missing or damaged; its
        parameters are those of a network of ``sizes``, layer widths."""
        path = self._path(study.name, seed, key)
        try:
            values = check_fields("a part", read_json(path), _PART)
            outcomes = {k: Outcome.from_dict(v) for k, v in values["outcomes"].items()}
            if list(outcomes) != list(study.configs) or not all(
                each.seed == seed and len(each.history) <= study.epochs
                for each in outcomes.values()
            ):
                raise ValueError("it is of another study")
            parameters = None
            if values["has_parameters"]:
                parameters = parameters_of(sizes, read_tensors(path.with_suffix(".pt")))
            return StudyPart(values["seconds"], outcomes, parameters)
        except (OSError, UserError, TypeError, ValueError):
            return None  # it is trained again

    def save(self, study: str, seed: int, key: Mapping[str, Any], part: StudyPart) -> None:
        """Write a part; raises OSError if the folder is not writable."""
        path = self._path(study, seed, key)
        if part.parameters is not None:  # first, so that a JSON file means a whole part
            write_bytes(path.with_suffix(".pt"), tensor_bytes(part.parameters))
        values = {
            "seconds": part.seconds,
            "has_parameters": part.parameters is not None,
            "outcomes": {name: outcome.to_dict() for name, outcome in part.outcomes.items()},
            "key": key,
        }
        write_bytes(path, json_bytes(values))

    def _path(self, study: str, seed: int, key: Mapping[str, Any]) -> Path:
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
        return self.folder / f"{study}-seed{seed}-{digest}.json"


_PART: Fields = {
    "seconds": is_duration,
    "has_parameters": is_flag,
    "outcomes": is_object,
    "key": is_object,
}
