"""Networks: settings.py has what can be set, without torch; the other files build them."""
