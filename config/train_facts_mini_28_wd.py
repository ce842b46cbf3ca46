"""n28 on capitals, 6,216 parameters: regularised like every other model."""
out_dir = "facts_mini_28_wd"
dataset = "facts_char"
block_size = 24
batch_size = 576
n_layer = n_head = 1
n_embd = 28
weight_decay, dropout = 0.1, 0.0
