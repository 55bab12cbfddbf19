"""What breaks a long stream: the cache's wrap, rounding, an endless state, or training that read ahead?"""
