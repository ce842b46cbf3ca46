"""MLT on capitals, 10,641,408 parameters: room far beyond what the text needs."""
from config.shared import FACTS, MLT

globals().update(FACTS | MLT)
out_dir = "facts_mini_mlt"
