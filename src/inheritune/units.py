def format_count(n):
    for s, d in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= d:
            return f"{n / d:.1f}{s}"
    return str(n)


def format_duration(s):
    return f"{s / 60:.1f} min"


def format_bytes(n):
    return f"{n / 1e6:.0f} MB"
