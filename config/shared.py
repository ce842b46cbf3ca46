"""What several run configs have in common, once. A run takes it by `globals().update(...)`."""

MATH = dict(dataset="as_math", block_size=9, batch_size=882)
FACTS = dict(dataset="facts_char", block_size=24, batch_size=576)
BOTH = dict(dataset="both_math_and_facts", block_size=24, batch_size=576)

# the paper's "MLT": nanoGPT's Shakespeare model at a learning rate a thousandth of the small models'
MLT = dict(n_layer=6, n_head=6, n_embd=384, mlp_expansion=4, dropout=0.2, weight_decay=0.1,
           learning_rate=1e-5, min_lr=1e-6)

# the regularised set: every model again
WD = dict(weight_decay=0.1, dropout=0.0)
