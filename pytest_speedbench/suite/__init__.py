"""Ready-made tests: `pytest --pyargs pytest_speedbench.suite --speedbench-engine=...`.

They name no batch sizes: `--speedbench-batch-size` or the ini value does. A repository can also import them
into a test file of its own, as `examples/quickstart` does.
"""
