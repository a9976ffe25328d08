"""Handle errors, files, signals and the environment; nothing here knows of networks."""
