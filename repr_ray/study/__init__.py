"""The experiment: its settings, trials, facts of named data sets, and tuning. No torch."""
