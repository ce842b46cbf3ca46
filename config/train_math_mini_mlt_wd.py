"""MLT on arithmetic, 10,628,352 parameters: regularised like every other model."""
out_dir = "math_mini_mlt_wd"
dataset = "as_math"
block_size = 9
batch_size = 882
n_layer = n_head = 6
n_embd = 384
mlp_expansion = 4
weight_decay, dropout = 0.1, 0.0
learning_rate, min_lr = 1e-5, 1e-6
