"""The operators: one file each, with its checks, wrapper, fake kernel, derivative and reference."""
