"""The READMEs' commands run as typed, the trainings shortened; the tables are the published ones."""
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from helpers import CHECKOUT, ROOT, run_script

README = (CHECKOUT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", README + (CHECKOUT / "data" / "README.md").read_text(), re.S)
HERE = r"(?:.*<<'END'\n(?:.*\n)*?END\n)"  # a file that is typed
COMMANDS = [command for block in BLOCKS for command in re.findall(HERE + "|.+\n", block)]
PYTHON = f"""#!{sys.executable}
# stands in for python, and shortens what takes long
import os, sys
args, short = sys.argv[1:], ["--max_iters=2", "--eval_interval=1", "--num_samples=1", "--device=cpu"]
script = next((arg for arg in args if arg.endswith(".py")), "")
if "-m" in args and "pytest" in args:
    sys.exit(0)
if script in ("train_with_eval.py", "sweep.py") and "--help" not in args:
    args += ["--max_iters=2", "--device=cpu"] if "--init_from=resume" in args else short
if script == "sweep.py":
    args += ["--num_seeds=1", "--n_embd=6"] if "config/sweep_paper.py" in args else []
if script == "bench.py":
    args += ["--num_seeds=1", "--seconds=0.1", "--compile=False", "--baseline=plain"]
os.execv(sys.executable, [sys.executable, *args])
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the repository, unprepared, to run the commands in, and beside it the stand-ins."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT, folder / "checkout", ignore=shutil.ignore_patterns("*.bin", "meta.json", "tests"))
    stand_ins = {"python": PYTHON, "pip": "#!/bin/sh\n",
                 "torchrun": '#!/bin/sh\nexec python -m torch.distributed.run "$@"\n'}
    (folder / "bin").mkdir()
    for name, text in stand_ins.items():
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    return folder / "checkout"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_runs(checkout, command):
    """A later command reads what an earlier one trained."""
    path = f"{checkout.parent / 'bin'}:{os.environ['PATH']}"
    done = run_script("-euo", "pipefail", "-c", command, program="bash", cwd=checkout, PATH=path)
    assert done.returncode == 0 and "Traceback" not in done.stderr, f"{done.stdout}\n{done.stderr}"


def test_the_commands_leave_what_they_are_for(checkout):
    """After all of them."""
    assert sum(command.count("python ") + command.count("torchrun ") for command in COMMANDS) >= 20
    for name in ("math_mini_14/plot.png", "paper/grid_math.png", "paper/tables.md", "results/tables_wd.md",
                 "capacity.png", "results/math_mini_14/ckpt.pt", "facts_mini_28/ckpt.pt",
                 "two/rank_1/ckpt.pt", "data/as_math_3-8/meta.json", "held_out_3-8/results.csv"):
        assert (checkout / name).stat().st_size > 0, name


def test_setup_installs_the_pinned_versions():
    """Both set-up commands install requirements.txt, whose versions are exact."""
    setups = [line for block in BLOCKS for line in block.splitlines() if line.startswith("pip install")]
    assert len(setups) == 2 and all("-r requirements.txt" in line for line in setups)
    pins = (ROOT / "requirements.txt").read_text().split()
    assert "torch==2.13.0" in pins and all(re.fullmatch(r"[a-z]+==[0-9.]+", pin) for pin in pins)


def test_the_readme_s_tables_are_the_published_ones():
    """Each row of its tables with seeds stands so in tables.md."""
    def rows(text: str) -> list[list[str]]:
        return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()
                if re.match(r"\| (n14|n28|n56|MLT[^|]*?) +\|", line)]

    published = rows((ROOT / "results" / "tables.md").read_text(encoding="utf-8"))
    shown = rows(README)
    assert len(shown) >= 12 and all(row in published for row in shown)
