"""n28 on arithmetic, 5,264 parameters: twice the width."""
from config.shared import MATH

globals().update(MATH)
out_dir = "math_mini_28"
n_embd = 28
