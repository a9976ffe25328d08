"""A training run: its configuration, its loop and its files."""
