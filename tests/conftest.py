"""seglib is imported before torchvision (see seglib/__init__.py); caches and data are the test session's own."""

import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait give the core to the kernels that tests start

import seglib  # noqa: F401
from seglib.data.synthetic import make_synthetic


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGLIB_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _no_mode_left_behind():
    """Seeding a run makes algorithms deterministic for the whole process; the next test wants what torch begins with."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def small_data(tmp_path_factory) -> Path:
    """A synthetic data set of 40 images of 64 px; tests must not write into it."""
    return make_synthetic(tmp_path_factory.mktemp("data") / "small", num_images=40, image_size=64, seed=3)


@pytest.fixture(scope="session")
def camvid() -> Path:
    """Real photographs, beside the checkout on machines that have them."""
    folder = Path(__file__).parents[2] / "shared" / "data" / "camvid"
    if not folder.is_dir():
        pytest.skip("the CamVid folder is not on this machine")
    return folder
