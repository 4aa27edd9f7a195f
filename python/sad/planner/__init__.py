"""Plans the memory of a training run from the models' configs alone.

`request` declares the options, `presets` has configs of well-known models, `model_shape` reads sizes from a config,
`formulas` computes the memory of a step, and `plan` chooses what fits on the GPU.
"""
