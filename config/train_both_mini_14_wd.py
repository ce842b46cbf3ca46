"""n14 on arithmetic and capitals, 2,142 parameters: regularised like every other model."""
from config.shared import BOTH, WD

globals().update(BOTH | WD)
out_dir = "both_mini_14_wd"
n_embd = 14
