"""Hypothesis profiles: ``dev`` looks for new examples each time, ``ci`` runs the same ones always."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# The machines open stores, which no deadline in milliseconds fits.
settings.register_profile("dev", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile(
    "ci", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))
