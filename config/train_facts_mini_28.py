"""n28 on capitals, 6,216 parameters: twice the width."""
from config.shared import FACTS

globals().update(FACTS)
out_dir = "facts_mini_28"
n_embd = 28
