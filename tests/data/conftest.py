"""The light curves that most tests of reading write to a file, and read back."""

import pytest

from astroco_fast.data.curves import CurveBatch
from tests.data.curve_factory import make_batch


@pytest.fixture
def batch() -> CurveBatch:
    return make_batch(6, bands=("V", "I"))
