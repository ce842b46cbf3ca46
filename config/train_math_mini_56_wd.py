"""n56 on arithmetic, 19,936 parameters: regularised like every other model."""
from config.shared import MATH, WD

globals().update(MATH | WD)
out_dir = "math_mini_56_wd"
n_embd = 56
