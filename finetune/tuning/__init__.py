"""Searching for better settings: the study on disk, its trials, and the processes that work on them."""
