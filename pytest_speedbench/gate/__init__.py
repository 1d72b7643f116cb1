"""From a measurement to a verdict: the baseline store, comparison statistics, checks, causes."""
