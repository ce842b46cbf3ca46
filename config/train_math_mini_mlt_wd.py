"""MLT on arithmetic, 10,628,352 parameters: regularised like every other model."""
from config.shared import MATH, MLT, WD

globals().update(MATH | MLT | WD)
out_dir = "math_mini_mlt_wd"
