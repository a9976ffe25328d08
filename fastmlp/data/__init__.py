"""Find, download, split, normalise, augment and order data sets."""
