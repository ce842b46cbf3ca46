"""What no test may depend on, and fixtures: prepared data, and trainings of a few iterations that several
tests look at but do not change."""
import faulthandler
import os
import shutil
import signal
import tempfile

import pytest
import torch
from hypothesis import settings

import data
from helpers import CHECKOUT, ROOT, SCRATCH, TASKS, end_children, heeding_signals, tracked, train

LIMIT_S = 300  # of one test
CACHES = ("MPLCONFIGDIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "HYPOTHESIS_STORAGE_DIRECTORY")
hung = set()  # files with a test that reached the limit
settings.register_profile("no deadline", deadline=None)  # a busy machine is no error
settings.load_profile("no deadline")


def pytest_configure(config):
    """The tests, and what they start, see the code alone: a copy of what git tracks, and no one's home."""
    config.add_cleanup(lambda: shutil.rmtree(SCRATCH))
    for name in [name for name in os.environ if name.startswith("GIT_")]:  # of a hook that runs the tests
        del os.environ[name]
    for file in tracked():
        (ROOT / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(CHECKOUT / file, ROOT / file)
    os.chdir(ROOT)
    data.ROOT = ROOT / "data"
    os.environ |= {name: f"{SCRATCH}/{name}" for name in CACHES}
    os.environ |= {"PYTEST_DEBUG_TEMPROOT": tempfile.gettempdir(), "TMPDIR": str(SCRATCH),  # tmp_path stays
                   "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
                   "MPLBACKEND": "agg", "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    tempfile.tempdir = str(SCRATCH)
    torch.set_num_threads(1)  # sums depend on it; tensors this small only wait for a second thread
    config.stderr = os.dup(2)  # before it is captured


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With `-n 8` of pytest-xdist: a file's tests by one process, in their order."""
    from xdist.scheduler import LoadFileScheduling
    return LoadFileScheduling(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """No test waits for ever: at its limit it fails, and with it what comes after it in its file. If it is
    deaf to that, in a library, all ends."""
    def fail(*_):
        hung.add(item.path)
        pytest.fail(f"no end in {LIMIT_S} s")

    signal.signal(signal.SIGALRM, fail)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S, 10)  # again, should the clearing up wait as well
    faulthandler.dump_traceback_later(LIMIT_S + 15, exit=True, file=item.config.stderr)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()


def pytest_runtest_setup(item):
    """See pytest_runtest_protocol."""
    if item.path in hung:
        pytest.fail("a test before it had no end")


@pytest.fixture(autouse=True)
def nothing_goes_on():
    """Neither processes nor the flushing to zero of subnormal numbers, which hypothesis wants."""
    yield
    end_children()
    torch.set_flush_denormal(False)


@pytest.fixture
def signals():
    """They reach a test that sends itself one, wherever the tests were started."""
    with heeding_signals():
        yield


@pytest.fixture(scope="session")
def datasets() -> dict[str, data.Dataset]:
    """The three datasets by task."""
    return {task: data.load(name) for task, name in TASKS.items()}


@pytest.fixture(scope="session")
def math_run(tmp_path_factory):
    """Two seeds of n14 on arithmetic, 20 iterations."""
    return train(tmp_path_factory.mktemp("math"), "--num_seeds=2")


@pytest.fixture(scope="session")
def facts_run(tmp_path_factory):
    """Two seeds of n14 on capitals, 20 iterations."""
    return train(tmp_path_factory.mktemp("facts"), "--num_seeds=2", run="facts_mini_14")


@pytest.fixture(scope="session")
def both_run(tmp_path_factory):
    """n14 on both, evaluated once at iteration 0."""
    return train(tmp_path_factory.mktemp("both"), "--max_iters=0", run="both_mini_14")
