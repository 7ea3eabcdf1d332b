"""Training a checkpoint inside a step: transformers.Trainer does it; here are the data, the losses and the bridge."""
