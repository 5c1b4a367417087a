"""Where the real observations are, and a skip that says so when they are not."""
from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"real SDO data not found at {DATA}")
