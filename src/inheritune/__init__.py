"""inheritune: a small base language model from a big one."""
