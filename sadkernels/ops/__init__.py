"""One file per op: its `torch.library` schema, fake and autograd, once for all backends, and its public function."""
