"""n14 on arithmetic and capitals, 2,142 parameters: regularised like every other model."""
out_dir = "both_mini_14_wd"
dataset = "both_math_and_facts"
block_size = 24
batch_size = 576
n_layer = n_head = 1
n_embd = 14
weight_decay, dropout = 0.1, 0.0
