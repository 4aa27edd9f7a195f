"""Small models from random weights, with a tokenizer of their own, for the demo and for studies."""
