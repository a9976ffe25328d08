"""``python -m fastmlp.reproduce`` is ``fastmlp reproduce``; see :mod:`fastmlp.cli.reproduce`."""

import sys

from fastmlp.cli.main import main

if __name__ == "__main__":
    main(["reproduce", *sys.argv[1:]])
