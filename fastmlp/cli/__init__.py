"""The command line, and the only importers of argparse and rich."""
