"""``python -m fastmlp.info`` is ``fastmlp info``; see :mod:`fastmlp.cli.info`."""

import sys

from fastmlp.cli.main import main

if __name__ == "__main__":
    main(["info", *sys.argv[1:]])
