"""n28 on arithmetic, 5,264 parameters: regularised like every other model."""
from config.shared import MATH, WD

globals().update(MATH | WD)
out_dir = "math_mini_28_wd"
n_embd = 28
