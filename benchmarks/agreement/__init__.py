"""How far the strategies keep what their authors' public code keeps; `python -m benchmarks.agreement --help`.

The code that is compared with is not part of this project: whoever measures names a directory with checkouts of it.
Here are the functions' names, the cases, and how a function of theirs is called.
"""
