"""n14 on arithmetic, 1,456 parameters: regularised like every other model."""
from config.shared import MATH, WD

globals().update(MATH | WD)
out_dir = "math_mini_14_wd"
n_embd = 14
