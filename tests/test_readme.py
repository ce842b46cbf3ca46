"""Every command of the README runs as typed, the trainings shortened."""
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
LINES = [line for block in re.findall(r"```sh\n(.*?)```", README, re.S) for line in block.splitlines()]
SHORT = ["--max_iters=2", "--eval_interval=1", "--num_samples=1", "--device=cpu"]
SHORT_RESUMED = ["--max_iters=3", "--device=cpu"]


def python_args(line: str) -> list[str]:
    """What a line gives to python; trainings and timings are shortened, a set-up is taken as done."""
    args = shlex.split(line.split("&&")[-1])[1:]
    if args[0] == "train_with_eval.py" and "--help" not in args:
        args += SHORT_RESUMED if "--init_from=resume" in args else SHORT
    if args[0] == "bench.py":
        args += ["--num_seeds=1", "--seconds=0.1", "--compile=False"]
    return args


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the repository, without data, results and runs, to run the commands in."""
    folder = tmp_path_factory.mktemp("readme") / "checkout"
    skip = shutil.ignore_patterns(".*", "*_mini_*", "*.bin", "meta.json", "__pycache__", "tests", "*.pt")
    shutil.copytree(ROOT, folder, ignore=skip)
    for path in (ROOT / "config").glob("train_*.py"):
        shutil.copy(path, folder / "config")
    return folder


def test_every_command_runs(checkout):
    """In the README's order: a later command reads what an earlier one trained."""
    assert len(LINES) >= 15
    for line in LINES:
        if line.endswith("-m pytest"):
            continue  # this very test
        command = [sys.executable, *python_args(line)]
        done = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, line
    for name in ("math_mini_14/plot.png", "grid_math.png", "tables.md", "results/tables_wd.md",
                 "math_mini_14/eval_as_math.csv", "facts_mini_28/eval_capitals.csv"):
        assert (checkout / name).stat().st_size > 0, name


def test_setup_installs_the_pinned_versions():
    """Both set-up commands install requirements.txt, whose versions are exact."""
    setups = [line for line in LINES if line.startswith("pip install")]
    assert len(setups) == 2 and all("-r requirements.txt" in line for line in setups)
    pins = (ROOT / "requirements.txt").read_text().split()
    assert "torch==2.13.0" in pins and all(re.fullmatch(r"[a-z]+==[0-9.]+", pin) for pin in pins)
