"""Conditioners: what the user gives, to what a network takes."""
