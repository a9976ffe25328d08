"""``python -m fastmlp.train`` is ``fastmlp train``; see :mod:`fastmlp.cli.train`."""

import sys

from fastmlp.cli.main import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
