"""Training a student on labelled trajectories: configuration, curriculum, and a thin `transformers.Trainer`."""
