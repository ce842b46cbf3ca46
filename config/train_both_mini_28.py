"""n28 on arithmetic and capitals, 6,636 parameters: twice the width."""
out_dir = "both_mini_28"
dataset = "both_math_and_facts"
block_size = 24
batch_size = 576
n_layer = n_head = 1
n_embd = 28
