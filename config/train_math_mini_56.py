"""n56 on arithmetic, 19,936 parameters: four times the width."""
from config.shared import MATH

globals().update(MATH)
out_dir = "math_mini_56"
n_embd = 56
