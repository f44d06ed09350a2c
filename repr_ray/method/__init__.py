"""The methods, with torch only. Reading order: schedule, filters, scores, measurement, data_scores, selection,
directions, reinit, repr."""
