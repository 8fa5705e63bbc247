"""Finding, loading and freezing pretrained models."""
