"""What knows nothing of networks: errors, files, signals, the environment."""
