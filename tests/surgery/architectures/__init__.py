"""Tiny random models of every causal-LM type, and a judge of what a cut makes of them."""
