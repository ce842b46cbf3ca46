"""n56 on arithmetic and capitals, 22,680 parameters: four times the width."""
from config.shared import BOTH

globals().update(BOTH)
out_dir = "both_mini_56"
n_embd = 56
