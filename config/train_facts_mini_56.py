"""n56 on capitals, 21,840 parameters: four times the width."""
from config.shared import FACTS

globals().update(FACTS)
out_dir = "facts_mini_56"
n_embd = 56
