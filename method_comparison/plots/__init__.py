"""What `pictures.py` draws: functions from numbers to matplotlib figures, and how they are read and written."""
