"""Rounds of inheriting, training and deciding."""
