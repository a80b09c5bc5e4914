"""How code that a model wrote is run: the program inside the box, the filter of system calls, the process that forks, one run.

`environments/sandbox.py` is what users call.
"""
