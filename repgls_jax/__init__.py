"""Rep-GLS in JAX: chest X-ray classifiers trained on what the report really says, doubts included."""

__version__ = "0.1.0"
