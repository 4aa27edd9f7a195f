"""On-policy distillation: the student acts, the teacher scores each span."""
