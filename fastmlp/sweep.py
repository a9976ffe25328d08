"""``python -m fastmlp.sweep`` is ``fastmlp sweep``; see :mod:`fastmlp.cli.sweep`."""

import sys

from fastmlp.cli.main import main

if __name__ == "__main__":
    main(["sweep", *sys.argv[1:]])
