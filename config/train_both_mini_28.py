"""n28 on arithmetic and capitals, 6,636 parameters: twice the width."""
from config.shared import BOTH

globals().update(BOTH)
out_dir = "both_mini_28"
n_embd = 28
