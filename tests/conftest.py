"""Fixtures: prepared data, and trainings of a few iterations that several tests look at but do not change."""
import pytest
import torch
from hypothesis import settings

import data
from helpers import TASKS, train

settings.register_profile("no deadline", deadline=None)  # a busy machine is no error
settings.load_profile("no deadline")
torch.set_num_threads(1)  # tensors this small only wait for a second thread, long if the machine is busy


@pytest.fixture(autouse=True)
def subnormal_numbers():
    """Trainings flush them to zero for the whole process; hypothesis wants them."""
    yield
    torch.set_flush_denormal(False)


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
    """n14 on capitals, 20 iterations."""
    return train(tmp_path_factory.mktemp("facts"), run="facts_mini_14")


@pytest.fixture(scope="session")
def both_run(tmp_path_factory):
    """n14 on both, evaluated once at iteration 0."""
    return train(tmp_path_factory.mktemp("both"), "--max_iters=0", run="both_mini_14")
