"""Every picture, and the only importers of matplotlib."""
