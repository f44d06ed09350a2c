"""Other schemes, to compare RePr with, one file each. Their settings are in settings.py, without torch."""
