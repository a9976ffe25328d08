"""Data sets: found, downloaded, split, normalised, augmented and put in order."""
