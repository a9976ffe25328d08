"""``python -m fastmlp.sweep`` is ``fastmlp sweep``; see :mod:`fastmlp.cli.sweep`."""

import sys

from fastmlp.cli.main import main

if __name__ == "fastmlp.sweep":  # this module would take the place of the function of that name
    raise ImportError("fastmlp.sweep is a function, and a command; import fastmlp and call it")
if __name__ == "__main__":
    main(["sweep", *sys.argv[1:]])
