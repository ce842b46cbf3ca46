"""n14 on capitals, 1,932 parameters: the smallest of the paper."""
from config.shared import FACTS

globals().update(FACTS)
out_dir = "facts_mini_14"
n_embd = 14
