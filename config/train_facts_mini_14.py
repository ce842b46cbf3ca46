"""n14 on capitals, 1,932 parameters: the smallest of the paper."""
out_dir = "facts_mini_14"
dataset = "facts_char"
block_size = 24
batch_size = 576
n_layer = n_head = 1
n_embd = 14
