"""finetune: an honest, fast loop from raw labelled text to a fine-tuned and quantized Hugging Face model."""

__version__ = "0.1.0"
