"""Settings of vLLM that are made in its environment."""

from __future__ import annotations

import os

# GiB for the KV cache; by default vLLM takes half of the machine's memory.
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
# One thread is all that models of this size can use.
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")
