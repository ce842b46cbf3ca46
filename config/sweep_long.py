"""Does a model that memorised find the rule, if it is trained 13 times as long?"""
num_seeds = 2
max_iters = 400_000
eval_interval = 4_000

runs = [dict(n_embd=28, weight_decay=decay) for decay in (0.0, 0.1)]
