"""Small models made on the spot, with weights, a tokenizer and a chat template, taught or random."""
