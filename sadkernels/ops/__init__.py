"""The ops: one file per loss, with its `torch.library` op and its public function."""
