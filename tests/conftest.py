"""Makes this folder importable by the tests below it, and keeps torch to one thread."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is first imported
