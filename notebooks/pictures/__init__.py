"""A module for each notebook: functions that draw its pictures from what the notebook has computed, and show them."""
