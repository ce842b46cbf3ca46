"""n28 on capitals, 6,216 parameters: regularised like every other model."""
from config.shared import FACTS, WD

globals().update(FACTS | WD)
out_dir = "facts_mini_28_wd"
n_embd = 28
