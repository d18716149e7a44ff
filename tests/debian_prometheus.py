"""Prometheus and promtool as Debian packages them: `make test` unpacks them into the environment where they are not
installed and a Debian archive can be reached."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.errors import Unavailable
from serve import prometheus


def require_prometheus() -> Path:
    """Where it is; promtool lies beside it. Skips the test where there is none."""
    try:
        return Path(prometheus.program())
    except Unavailable as error:
        pytest.skip(str(error))
