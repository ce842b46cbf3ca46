"""All regularised runs of the paper; then: python plot_all_models.py --root_dir=paper --wd"""
out_dir = "paper"
table = False

SEEDS = {"14": 16, "28": 8, "56": 2, "mlt": 1}
runs = [dict(base=f"config/train_{data}_mini_{size}_wd.py", num_seeds=seeds)
        for size, seeds in SEEDS.items() for data in ("math", "facts", "both")]
