"""What somebody without twinlens would write: one loop per module, each a program of its own.

They know nothing of twinlens. `test_rivals.py` starts them with a `Job` as their argument and ends them with SIGTERM.
"""
