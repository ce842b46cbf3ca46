"""n14 on capitals, 1,932 parameters: regularised like every other model."""
out_dir = "facts_mini_14_wd"
dataset = "facts_char"
block_size = 24
batch_size = 576
n_layer = n_head = 1
n_embd = 14
weight_decay, dropout = 0.1, 0.0
