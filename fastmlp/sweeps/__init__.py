"""Many configurations, trained side by side and compared."""
