"""The engine: plan the layers, split the model, schedule, move tensors, sample.  Knows no HTTP."""
