"""n56 on arithmetic and capitals, 22,680 parameters: four times the width."""
out_dir = "both_mini_56"
dataset = "both_math_and_facts"
block_size = 24
batch_size = 576
n_layer = n_head = 1
n_embd = 56
