"""The embedded engine: real speculative decoding over two tiny language models known in closed form."""
