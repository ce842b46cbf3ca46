"""n14 on arithmetic and capitals, 2,142 parameters: the smallest of the paper."""
from config.shared import BOTH

globals().update(BOTH)
out_dir = "both_mini_14"
n_embd = 14
