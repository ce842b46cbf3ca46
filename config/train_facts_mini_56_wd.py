"""n56 on capitals, 21,840 parameters: regularised like every other model."""
from config.shared import FACTS, WD

globals().update(FACTS | WD)
out_dir = "facts_mini_56_wd"
n_embd = 56
