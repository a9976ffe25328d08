"""``python -m fastmlp.predict`` is ``fastmlp predict``; see :mod:`fastmlp.cli.predict`."""

import sys

from fastmlp.cli.main import main

if __name__ == "__main__":
    main(["predict", *sys.argv[1:]])
