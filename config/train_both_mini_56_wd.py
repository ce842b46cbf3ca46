"""n56 on arithmetic and capitals, 22,680 parameters: regularised like every other model."""
from config.shared import BOTH, WD

globals().update(BOTH | WD)
out_dir = "both_mini_56_wd"
n_embd = 56
