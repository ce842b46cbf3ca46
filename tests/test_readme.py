"""The READMEs' commands run as typed, the trainings shortened; the tables are the published ones."""
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from config.sweep_inside import read_answers, shares
from data.log import read_run
from helpers import CHECKOUT, ROOT, rows_of, run_script
from plot_results import accuracy

README = (CHECKOUT / "README.md").read_text(encoding="utf-8")
SCORES = rows_of((ROOT / "results" / "tables.md").read_text(encoding="utf-8"))["The paper's Tables 2 to 4"]
BLOCKS = re.findall(r"```sh\n(.*?)```", README + (CHECKOUT / "data" / "README.md").read_text(), re.S)
HERE = r"(?:.*<<'END'\n(?:.*\n)*?END\n)"  # a file that is typed
COMMANDS = [command for block in BLOCKS for command in re.findall(HERE + "|.+\n", block)]
SHORTER = """# shortens what takes long
import os, sys
args, short = sys.argv[1:], ["--max_iters=2", "--eval_interval=2", "--num_samples=1", "--device=cpu"]
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
STAND_INS = {"shorter.py": SHORTER, "pip": "#!/bin/sh\n",
             "python": f'#!/bin/sh\nexec "{sys.executable}" "$(dirname "$0")/shorter.py" "$@"\n',
             "torchrun": '#!/bin/sh\nexec python -m torch.distributed.run "$@"\n'}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the repository, unprepared, to run the commands in, and beside it the stand-ins."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT, folder / "checkout", ignore=shutil.ignore_patterns("*.bin", "meta.json", "tests"))
    (folder / "bin").mkdir()
    for name, text in STAND_INS.items():
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    return folder / "checkout"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_runs(checkout, command):
    """A later command reads what an earlier one trained."""
    path, pip = f"{checkout.parent / 'bin'}:{os.environ['PATH']}", checkout.parent / "bin" / "pip"
    assert shutil.which("pip", path=path) == str(pip), "the temporary folder holds no programs: set TMPDIR"
    done = run_script("-euo", "pipefail", "-c", command, program="bash", cwd=checkout, PATH=path,
                      BASH_ENV="")
    assert done.returncode == 0 and "Traceback" not in done.stderr, f"{done.stdout}\n{done.stderr}"


def test_the_commands_leave_what_they_are_for(checkout):
    """After all of them."""
    assert sum(command.count("python ") + command.count("torchrun ") for command in COMMANDS) >= 20
    for name in ("math_mini_14/plot.png", "paper/grid_math.png", "paper/tables.md",
                 "capacity_2.png", "results/math_mini_14/ckpt.pt", "capitals.csv",
                 "two/rank_1/ckpt.pt", "data/as_math_20_5pct/meta.json", "numbers_20/results.csv"):
        assert (checkout / name).stat().st_size > 0, name


def test_setup_installs_the_pinned_versions():
    """Both set-up commands install requirements.txt, whose versions are exact."""
    setups = [line for block in BLOCKS for line in block.splitlines() if line.startswith("pip install")]
    assert len(setups) == 2 and all("-r requirements.txt" in line for line in setups)
    pins = (ROOT / "requirements.txt").read_text().split()
    assert "torch==2.13.0" in pins and all(re.fullmatch(r"[a-z]+==[0-9.]+", pin) for pin in pins)


def test_the_table_is_the_published_one():
    """Each of its rows stands so in tables.md, which has more columns."""
    shown = rows_of(README)["The paper's cells"]
    assert shown == [[*row[:5], row[8]] for row in SCORES] and len(shown) == 12


def test_what_we_found_is_what_the_logs_say():
    """Every number of that section, from the logs and answers in results/."""
    results, found = ROOT / "results", README.split("## What we found")[1].split("##")[0]
    last = {size: accuracy(read_run(results / f"math_mini_{size}"), "heldout")[-1]
            for size in ("14", "28", "56", "mlt")}
    larger = np.concatenate([last[size] for size in ("28", "56", "mlt")])
    answers = read_answers(results / "answers")

    def share(name: str, test: str, kinds: int) -> float:
        """Percent right, or off by less than `kinds`: the mean over seeds."""
        return 100 * shares(answers[name], test)[:, :kinds].sum(1).mean()

    line = {name: share(name, "line", 1) for name in ("n14", "n28", "n56", "mlt")}
    widths = [read_run(folder) for folder in (results / "capacity").iterdir()]
    peak = max(widths, key=lambda run: accuracy(run, "heldout")[-1].mean())
    best = SCORES[0][9].split()[0]
    few, many = (accuracy(read_run(results / "numbers" / f"numbers_{n}_n_embd_56"), "heldout")[-1].mean()
                 for n in (10, 20))
    seen = accuracy(read_run(results / "numbers" / "numbers_20_n_embd_56"), "seen")[-1].mean()
    right, highest = (last["14"] == 1).sum(), accuracy(peak, "heldout")[-1].mean()
    for words in (
            f"none of {len(larger)} seeds of the larger", f"{right} of {len(last['14'])} end",
            "n14 has {n14:.0f}% right, n28 {n28:.0f}%, n56 {n56:.0f}%, the 6-layer model {mlt:.0f}%".format(
                **line),
            f"{share('n28', 'held-out', 3) - share('n28', 'held-out', 1):.0f}% of what n28 says",
            f"{100 * highest:.0f}%, with {peak.info['parameters']:,} parameters",
            f"{best} seeds of n14 and not {right}",
            f"with {100 * few:.0f}% of the held-out answers of ten numbers, has {100 * many:.0f}%",
            f"and {100 * seen:.1f}% of what it saw"):
        assert words in found, words
    assert not (larger == 1).any()
    line = re.search(r"R\^2 = ([0-9.]+)", (results / "numbers.md").read_text())[1]
    assert ("Parameters an equation explain less than half" in README) == (float(line) < 0.5)
