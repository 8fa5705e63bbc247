"""Metrics, their intervals, and the baselines that they are held against."""
