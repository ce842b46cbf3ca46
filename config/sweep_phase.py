"""Which widths find the rule, and how much of it may be held out?"""
import random

num_seeds = 4
eval_interval = 1000
draw = "phase"

PAIRS = [f"{a}-{b}" for a in range(10) for b in range(a + 1, 10)]
random.Random(1337).shuffle(PAIRS)  # each number of pairs takes the first ones
runs = [dict(name=f"n_embd_{n}_pairs_{k}", n_embd=n, held_out=",".join(PAIRS[:k]))
        for n in (10, 14, 20, 28, 40) for k in (1, 2, 5, 10, 20)]
