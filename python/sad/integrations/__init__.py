"""The span loss inside the trainers and the training loops of other libraries."""
