"""MLT on capitals, 10,641,408 parameters: regularised like every other model."""
from config.shared import FACTS, MLT, WD

globals().update(FACTS | MLT | WD)
out_dir = "facts_mini_mlt_wd"
