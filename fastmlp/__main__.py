"""``python -m fastmlp`` is the command ``fastmlp``; see :mod:`fastmlp.cli.main`."""

from fastmlp.cli.main import main

if __name__ == "__main__":
    main()
