"""n28 on arithmetic and capitals, 6,636 parameters: regularised like every other model."""
out_dir = "both_mini_28_wd"
dataset = "both_math_and_facts"
block_size = 24
batch_size = 576
n_layer = n_head = 1
n_embd = 28
weight_decay, dropout = 0.1, 0.0
