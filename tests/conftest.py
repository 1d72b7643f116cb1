"""What every test may use."""

from __future__ import annotations

import contextlib

pytest_plugins = ["pytester"]

with contextlib.suppress(ImportError):  # the environments of real engines do not have it, and need none
    from hypothesis import settings

    settings.register_profile("no deadline", deadline=None)  # a busy machine is no reason to fail
    settings.load_profile("no deadline")
