"""n56 on arithmetic, 19,936 parameters: four times the width."""
out_dir = "math_mini_56"
dataset = "as_math"
block_size = 9
batch_size = 882
n_layer = n_head = 1
n_embd = 56
