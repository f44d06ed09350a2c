"""Training one trial. Reading order: loop, step, setup, checkpoint, folder, trial.

`check` is what the launcher does before any of them.
"""
