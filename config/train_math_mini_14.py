"""n14 on arithmetic, 1,456 parameters: the smallest of the paper."""
from config.shared import MATH

globals().update(MATH)
out_dir = "math_mini_14"
n_embd = 14
