"""Where is the rule found, and where is it lost?"""
eval_interval = 1000
draw = "capacity"

SEEDS = {6: 16, 8: 16, 10: 32, 12: 32, 14: 32, 16: 32, 18: 32, 20: 32, 24: 16, 28: 16,
         32: 8, 40: 8, 48: 8, 56: 8}
runs = [dict(n_embd=n, num_seeds=seeds) for n, seeds in SEEDS.items()]
