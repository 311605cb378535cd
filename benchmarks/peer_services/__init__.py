"""What people would write instead of itemstore, each as short as it can be and still be fair.

They answer the same calls (GET, PUT, POST, If-None-Match) with the same envelope, and hold the same
items. None of them has conditions for writes, limits, metrics or several instances.
"""
