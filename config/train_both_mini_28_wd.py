"""n28 on arithmetic and capitals, 6,636 parameters: regularised like every other model."""
from config.shared import BOTH, WD

globals().update(BOTH | WD)
out_dir = "both_mini_28_wd"
n_embd = 28
