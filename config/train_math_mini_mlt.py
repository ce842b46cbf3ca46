"""MLT on arithmetic, 10,628,352 parameters: room far beyond what the text needs."""
from config.shared import MATH, MLT

globals().update(MATH | MLT)
out_dir = "math_mini_mlt"
