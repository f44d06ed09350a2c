"""Files: whole or not there, here or on object storage; and reading those that nobody vouches for."""
