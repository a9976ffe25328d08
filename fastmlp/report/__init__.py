"""Repeat the course's experiments and report them in one HTML file."""
