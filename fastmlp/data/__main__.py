"""Run ``fastmlp data`` as ``python -m fastmlp.data``; see :mod:`fastmlp.cli.data`."""

import runpy
import sys

if __name__ == "__main__":
    sys.argv[1:1] = ["data"]
    runpy.run_module("fastmlp", run_name="__main__")
