"""How do the small model and a larger one learn? A film: the digits, and what is answered."""
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.patches import Rectangle

import eval_as_math
from config import UserError
from config.sweep_digits import digit_rows
from plot_results import OFF, draw_digits
from sample import kept_checkpoints, open_model

keep_every = 50
table = False

runs = [dict(base=f"config/train_math_mini_{size}.py", name=f"n{size}") for size in (14, 28)]


def draw_answers(ax, off, op, pairs):
    """The table of an operation, a down and b across, by how far the answers (N, N) are off, NaN for none;
    what was held out is framed."""
    kinds = np.nan_to_num(np.minimum(off, 3), nan=4)
    ax.imshow(kinds, cmap=ListedColormap([color for _, color in OFF.values()]), vmin=0, vmax=4)
    for a, b in {*pairs, *(pair[::-1] for pair in pairs)}:
        ax.add_patch(Rectangle((b - 0.5, a - 0.5), 1, 1, fill=False, linewidth=2))
    ax.set(xticks=range(len(off)), yticks=range(len(off)), title=f"a {op} b")
    ax.tick_params(length=0, labelsize=6, pad=1)


def draw(fig, logs):
    """A frame for each kept checkpoint that all have: of the first seeds, the digits in the last checkpoint's
    first two principal components, and how far the answers are off."""
    names = sorted(set.intersection(*({*kept_checkpoints(str(run.folder))} for run in logs)))
    if not names:
        raise UserError(f"{logs[0].folder.parent}: no kept checkpoints; remove the folder and train again")
    fig.set_layout_engine("none")
    fig.set_size_inches(8, 5.6)
    for name in names:
        fig.clear()
        fig.suptitle(f"iteration {int(name[5:-3]):,}", fontsize=24)
        grid = fig.add_gridspec(2, 4, height_ratios=[1.5, 1], left=0.03, right=0.98, bottom=0.1, top=0.85)
        for left, run in zip((0, 2), logs):
            model, last = (open_model(str(run.folder), ckpt).only(-1) for ckpt in (name, names[-1]))
            ax = fig.add_subplot(grid[0, left:left + 2])
            ax.set_title(f"{run.folder.name}: the digits in its embedding", fontsize=12)
            now, end = (digit_rows(one.embedding(), one.vocab)[0] for one in (model, last))
            draw_digits(ax, now, 12, end)
            texts = eval_as_math.ask(model, model, model.seeds, [0], num_samples=1, temperature=0, top_k=1)
            off = abs(eval_as_math.numbers(texts[0, :, 0], ">") - eval_as_math.answers_of(texts.shape[1]))
            for i, op in enumerate("+-"):
                ax = fig.add_subplot(grid[1, left + i])
                draw_answers(ax, off.reshape(2, model.numbers, -1)[i], op, model.held_out)
        for i, (label, color) in enumerate([*OFF.values(), ("framed: held out", "none")]):
            fig.text(0.02 + 0.158 * i, 0.02, label, backgroundcolor=color, fontsize=10,
                     color="white" if label == "off by more" else "black")
        yield
