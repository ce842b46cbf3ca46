"""MLT on arithmetic and capitals, 10,647,168 parameters: room far beyond what the text needs."""
from config.shared import BOTH, MLT

globals().update(BOTH | MLT)
out_dir = "both_mini_mlt"
