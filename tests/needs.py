"""What some tests need beside the project's own requirements; without it they are skipped, and say why."""

import pytest

from unveil.data.fashion_mnist import DEBIAN

needs_fashion = pytest.mark.skipif(
    not DEBIAN.is_dir(), reason="the Debian package dataset-fashion-mnist is not installed (apt install it)"
)
