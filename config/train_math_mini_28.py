"""n28 on arithmetic, 5,264 parameters: twice the width."""
out_dir = "math_mini_28"
dataset = "as_math"
block_size = 9
batch_size = 882
n_layer = n_head = 1
n_embd = 28
