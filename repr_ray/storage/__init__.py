"""Atomic files on disk and object storage, the lease on a folder, and bounded reading of untrusted files."""
