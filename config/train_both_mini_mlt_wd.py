"""MLT on arithmetic and capitals, 10,647,168 parameters: regularised like every other model."""
from config.shared import BOTH, MLT, WD

globals().update(BOTH | MLT | WD)
out_dir = "both_mini_mlt_wd"
