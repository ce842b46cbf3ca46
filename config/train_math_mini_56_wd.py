"""n56 on arithmetic, 19,936 parameters: regularised like every other model."""
out_dir = "math_mini_56_wd"
dataset = "as_math"
block_size = 9
batch_size = 882
n_layer = n_head = 1
n_embd = 56
weight_decay, dropout = 0.1, 0.0
