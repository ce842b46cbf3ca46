"""Every command of the README runs as typed, the trainings shortened."""
import re
import shlex
import shutil
import socket
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
    args = shlex.split(line.split("&&")[-1])
    args = ["-m", "torch.distributed.run", *args[1:]] if args[0] == "torchrun" else args[1:]
    if "train_with_eval.py" in args and "--help" not in args:
        args += SHORT_RESUMED if "--init_from=resume" in args else SHORT
    if args[0] == "bench.py":
        args += ["--num_seeds=1", "--seconds=0.1", "--compile=False"]
    return args


def machines(line: str) -> list[str]:
    """A line as each of its machines has it, two here: with this one's address and a free port."""
    if "--nnodes" not in line:
        return [line]
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        here = f"127.0.0.1:{s.getsockname()[1]}"
    for key, value in (("nnodes", 2), ("nproc_per_node", 1), ("rdzv_endpoint", here), ("num_seeds", 2)):
        line, found = re.subn(rf"--{key}=\S+", f"--{key}={value}", line)
        assert found == 1
    return [line] * 2


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
        running = [subprocess.Popen([sys.executable, *python_args(own)], cwd=checkout, text=True,
                                    stdout=subprocess.PIPE, stderr=subprocess.PIPE) for own in machines(line)]
        for process in running:
            out, err = process.communicate()
            assert process.returncode == 0, f"{line}\n{out}\n{err}"
            assert "Traceback" not in err, line
    for name in ("math_mini_14/plot.png", "grid_math.png", "tables.md", "results/tables_wd.md",
                 "math_mini_14/eval_as_math.csv", "facts_mini_28/eval_capitals.csv", "two/ckpt.pt",
                 "sweep/ckpt.pt"):
        assert (checkout / name).stat().st_size > 0, name


def test_setup_installs_the_pinned_versions():
    """Both set-up commands install requirements.txt, whose versions are exact."""
    setups = [line for line in LINES if line.startswith("pip install")]
    assert len(setups) == 2 and all("-r requirements.txt" in line for line in setups)
    pins = (ROOT / "requirements.txt").read_text().split()
    assert "torch==2.13.0" in pins and all(re.fullmatch(r"[a-z]+==[0-9.]+", pin) for pin in pins)
