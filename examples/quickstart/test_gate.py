"""The gate of an engine repository: the plugin's ready-made tests, on the cells that `pytest.ini` names."""

from pytest_speedbench.suite.test_acceptance import test_acceptance_length
from pytest_speedbench.suite.test_speedup import test_speedup
from pytest_speedbench.suite.test_throughput import test_throughput

__all__ = ["test_acceptance_length", "test_speedup", "test_throughput"]
