"""MLT on arithmetic and capitals, 10,647,168 parameters: regularised like every other model."""
out_dir = "both_mini_mlt_wd"
dataset = "both_math_and_facts"
block_size = 24
batch_size = 576
n_layer = n_head = 6
n_embd = 384
mlp_expansion = 4
weight_decay, dropout = 0.1, 0.0
learning_rate, min_lr = 1e-5, 1e-6
