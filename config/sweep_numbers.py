"""Does a model that memorises the small table learn the rule of a larger one?"""
held_out = "5%"
eval_interval = 2000
num_samples = 1
temperature = 0.0


def _equations(numbers):
    """Additions and subtractions, those of the held-out pairs left out."""
    return 2 * numbers ** 2 - 4 * round(0.05 * numbers * (numbers - 1) / 2)


def _run(numbers, n_embd, suffix="", exposure=1.0):
    """A cell of the plane. With `exposure`, the schedule is stretched as a whole, in that proportion."""
    return dict(name=f"numbers_{numbers}_n_embd_{n_embd}{suffix}", numbers=numbers, n_embd=n_embd,
                num_seeds=2 if numbers >= 28 and n_embd >= 40 else 4, block_size=9 if numbers <= 10 else 11,
                **{key: round(iters * exposure) for key, iters in
                   dict(max_iters=30_000, lr_decay_iters=25_000, warmup_iters=2_000).items()})


runs = sorted((_run(numbers, n_embd) for numbers in (10, 14, 20, 28, 40) for n_embd in (14, 20, 28, 40, 56)),
              key=lambda run: run["numbers"] * run["n_embd"] ** 2)  # the small ones first
# every equation as often as each of the smallest table
runs += [_run(numbers, 28, "_exposure", _equations(numbers) / _equations(10)) for numbers in (14, 20, 28)]
