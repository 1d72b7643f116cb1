"""Why a metric fell: cause, decomposition, pattern, break-even."""
