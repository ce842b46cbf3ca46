"""n28 on capitals, 6,216 parameters: twice the width."""
out_dir = "facts_mini_28"
dataset = "facts_char"
block_size = 24
batch_size = 576
n_layer = n_head = 1
n_embd = 28
