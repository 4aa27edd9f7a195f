"""Text to token labels: segment a trajectory into spans, tokenize it once, label its tokens."""
