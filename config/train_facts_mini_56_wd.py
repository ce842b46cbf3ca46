"""n56 on capitals, 21,840 parameters: regularised like every other model."""
out_dir = "facts_mini_56_wd"
dataset = "facts_char"
block_size = 24
batch_size = 576
n_layer = n_head = 1
n_embd = 56
weight_decay, dropout = 0.1, 0.0
