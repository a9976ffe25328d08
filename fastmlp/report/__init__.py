"""The course's experiments, done again, as one HTML file."""
