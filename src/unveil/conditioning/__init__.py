"""Conditioners: modules that convert what the user gives to the condition of a network."""
