"""What every test may use."""

from __future__ import annotations

from hypothesis import settings

pytest_plugins = ["pytester"]

settings.register_profile("no deadline", deadline=None)  # a busy machine is no reason to fail
settings.load_profile("no deadline")
