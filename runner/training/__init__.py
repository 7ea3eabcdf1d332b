"""Train a checkpoint inside a step: the data, the losses, and a subclass of transformers.Trainer."""
