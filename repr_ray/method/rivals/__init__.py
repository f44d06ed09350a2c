"""Other schemes to hold RePr against, a file a rival. Settings are in settings.py, which needs no torch."""
