"""n56 on arithmetic and capitals, 22,680 parameters: regularised like every other model."""
out_dir = "both_mini_56_wd"
dataset = "both_math_and_facts"
block_size = 24
batch_size = 576
n_layer = n_head = 1
n_embd = 56
weight_decay, dropout = 0.1, 0.0
