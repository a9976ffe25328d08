"""Write down what tests/faults/run.sh counted, a JSON object a line, as results/faults.json.

python benchmarks/faults.py FILE
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

from machine import RESULTS, provenance, save


def main() -> None:
    """Add the lines up and save them beside the machine and the commit."""
    figures: Counter[str] = Counter()
    for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines():
        figures.update(json.loads(line))
    save(RESULTS / "faults.json", {"provenance": provenance(), "figures": dict(figures)})


if __name__ == "__main__":
    main()
