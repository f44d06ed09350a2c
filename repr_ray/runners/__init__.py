"""Where trials run: on Ray (ray.py, the only module that imports it) or one after the other here (local.py)."""
