"""Does a model that memorised ever find the rule?"""
num_seeds = 2
max_iters = 1_000_000
eval_interval = 10_000

runs = [dict(n_embd=n, weight_decay=decay) for n in (28, 56) for decay in (0.0, 0.1)]
