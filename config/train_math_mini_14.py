"""n14 on arithmetic, 1,456 parameters: the smallest of the paper."""
out_dir = "math_mini_14"
dataset = "as_math"
block_size = 9
batch_size = 882
n_layer = n_head = 1
n_embd = 14
