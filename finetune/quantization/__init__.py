"""Smaller, faster copies of a trained model: one file per backend."""
