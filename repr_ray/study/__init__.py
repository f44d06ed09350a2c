"""What is asked: an experiment, its trials, the facts of named data sets, tuning. No torch."""
