"""From records to numbers: acceptance, throughput, latency. Pure functions, no I/O."""
