"""Networks: settings.py has their settings, without torch; the other files build them."""
