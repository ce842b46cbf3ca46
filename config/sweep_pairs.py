"""Is 5-7 a lucky pair to hold out?"""
num_seeds = 4
eval_interval = 1000
draw = "pairs"

runs = [dict(held_out=f"{a}-{b}") for a in range(10) for b in range(a + 1, 10)]
