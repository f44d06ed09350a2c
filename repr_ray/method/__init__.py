"""The science: torch only. Reading order: schedule, filters, scores, selection, reinit, schemes."""
