"""Gate changes to LLM inference engines on SPEED-Bench, the benchmark for speculative decoding."""

__version__ = "0.1.0"
