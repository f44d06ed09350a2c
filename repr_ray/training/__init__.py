"""Training one trial. Reading order: loop, step, setup, checkpoint, folder, trial."""
