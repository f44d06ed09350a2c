"""Where trials run: on Ray (ray.py and its parts), or one after the other in this process (local.py)."""
