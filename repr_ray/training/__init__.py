"""Training one trial. Reading order: loop, setup, optimizers, checkpoint, folder, trial."""
