class TritonScan:
    pass


def usable(u, A):
    return False
