"""Optimizers and learning-rate schedules. No torch here: settings name the optimizers of torch that they build."""
