"""n56 on capitals, 21,840 parameters: four times the width."""
out_dir = "facts_mini_56"
dataset = "facts_char"
block_size = 24
batch_size = 576
n_layer = n_head = 1
n_embd = 56
