"""n14 on capitals, 1,932 parameters: regularised like every other model."""
from config.shared import FACTS, WD

globals().update(FACTS | WD)
out_dir = "facts_mini_14_wd"
n_embd = 14
