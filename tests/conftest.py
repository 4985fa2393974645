"""seglib is imported before torchvision (see seglib/__init__.py); caches and data are the test session's own."""

import os
import sys
import time
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait give the core to the kernels that tests start
if "PYTEST_XDIST_WORKER" in os.environ:  # `pytest -n 2`: the cores are taken by the other workers
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import seglib  # noqa: F401
from seglib import parts
from seglib.data.synthetic import make_synthetic
from seglib.runs import check


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGLIB_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def wait_for():
    """Wait until a condition holds; return what it says."""

    def wait(condition, seconds=120):
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.05)
        return found

    return wait


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium."""
    from playwright.sync_api import sync_playwright  # few tests need it

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(autouse=True)
def builders_answer_here(monkeypatch):
    """The builders are asked in this process, which has torch already; `test_check.py` asks the child that a grid asks."""

    def answer(questions):
        before = dict(parts._registered)
        answers = [check._answer(**each) for each in questions]
        parts._registered.clear()
        parts._registered.update(before)
        return answers

    monkeypatch.setattr(check, "_run_child", answer)


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
