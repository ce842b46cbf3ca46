"""All runs of the paper (of the MLT, days on a CPU); then: python plot_all_models.py --root_dir=paper"""
out_dir = "paper"
table = False

SEEDS = {"14": 64, "28": 32, "56": 8, "mlt": 1}
runs = [dict(base=f"config/train_{data}_mini_{size}.py", num_seeds=seeds)
        for size, seeds in SEEDS.items() for data in ("math", "facts", "both")]
